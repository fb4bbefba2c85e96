"""Sampling for a suite, apart from judging: prompts in, one lossless file per clip out.

Prompts are sampled in batches. The noise of a batch is a function of the seed and of the index of its first prompt, so
the clips do not depend on when, or by which process, their batch was made. A batch is the unit of work: its clips are
written first and its record last, and a batch with a record is not made again. Of n processes, each makes every n-th
batch.

    clip-000000.safetensors    `video`, uint8 (F, H, W, 3); the metadata entry `fps`
    batch-000000.json          named by its first clip: what it was made from, and the seconds it took
    placement.json             `tiling`: whether the clips were decoded in tiles
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from avd.data import Video
from avd.engine.randomness import generator_for
from avd.engine.ranks import Ranks
from avd.evaluation.suite import Clip, Prompt
from avd.files import read_json, read_text, write_atomically, write_json
from avd.models.family import TextToVideo
from avd.sampling.placement import PlacedModel, Placement, encoded_first
from avd.sampling.samplers import SampledModel, Sampler
from avd.types import CountProgress, UserError

_LARGEST_BATCH = 16
_POSITIONS = 2**15
"""Latent positions, frames times height times width, that a batch holds at most: one clip of 81 frames of 480 x 832
has four times as many. The miniature is far below."""
_PLACEMENT_FILE = "placement.json"
_POLL = 1.0
"""Seconds between looks at what other processes have made."""


def batch_size(model: SampledModel) -> int:
    """Clips that are sampled together: as many as fit, from the size of one clip's latents."""
    _, frames, height, width = model.latent_shape()
    return max(1, min(_LARGEST_BATCH, _POSITIONS // (frames * height * width)))


@dataclass(frozen=True)
class Samples:
    """Sampled clips on disk, in the order of their prompts, and how they were made."""

    folder: Path
    prompts: tuple[Prompt, ...]
    batch: int
    seed: int
    steps: int
    network_calls: int
    key: str
    """Changes with anything that the clips depend on."""

    def __len__(self) -> int:
        return len(self.prompts)

    def clips(self) -> Iterator[Clip]:
        """The clips, each read from its file when it is asked for. Raises UserError if they are not all there."""
        missing = [start for start in self.starts() if not self.has_batch(start)]
        if missing:
            raise UserError(
                f"{self.folder} lacks {len(missing)} of {len(self.starts())} batches: run the same command again"
            )
        for i, prompt in enumerate(self.prompts):
            path = self.clip_file(i)
            yield Clip(str(path), prompt, partial(_read_clip, path), f"{self.key}, clip {i}")

    def seconds_per_video(self) -> float:
        """The denoising network and what stands between its calls, without text encoder and VAE; a clip's share of a
        batch."""
        return sum(self._seconds(self.record_file(start)) for start in self.starts()) / len(self.prompts)

    def starts(self) -> range:
        """The first clip of each batch."""
        return range(0, len(self.prompts), self.batch)

    def indices(self, start: int) -> range:
        """The clips of the batch that begins with clip `start`."""
        return range(start, min(start + self.batch, len(self.prompts)))

    def texts(self, start: int) -> list[str]:
        """The prompts of that batch."""
        return [self.prompts[i].text for i in self.indices(start)]

    def clip_file(self, index: int) -> Path:
        return self.folder / f"clip-{index:06d}.safetensors"

    def record_file(self, start: int) -> Path:
        return self.folder / f"batch-{start:06d}.json"

    def has_batch(self, start: int) -> bool:
        """Whether a batch is complete. Raises UserError if it was made from something else."""
        if not self.record_file(start).exists():
            return False
        self._seconds(self.record_file(start))
        return all(self.clip_file(i).exists() for i in self.indices(start))

    def check_folder(self) -> None:
        """Raise UserError if any batch in the folder was made from something else."""
        for path in sorted(self.folder.glob("batch-*.json")):
            self._seconds(path)

    def wait(self, progress: CountProgress) -> None:
        """Return when all batches are there, whoever makes them; `progress` counts them."""
        left = [start for start in self.starts() if not self.has_batch(start)]
        while left:
            progress(len(self.starts()) - len(left), len(self.starts()))
            time.sleep(_POLL)
            left = [start for start in left if not self.has_batch(start)]
            if not left:
                progress(len(self.starts()), len(self.starts()))

    def remove(self) -> None:
        """Remove the clips and their records, and the folder if nothing else is in it."""
        files = [self.folder / _PLACEMENT_FILE, *(self.record_file(start) for start in self.starts())]
        for path in files + [self.clip_file(i) for i in range(len(self.prompts))]:
            path.unlink(missing_ok=True)
        if not any(self.folder.iterdir()):
            self.folder.rmdir()

    def _seconds(self, path: Path) -> float:
        """The time that a batch took, from its record."""
        try:
            record = json.loads(read_text(path))
            key, seconds = record["key"], float(record["seconds"])
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is not a record of sampled clips: remove {self.folder} or name another") from error
        if key != self.key:
            raise UserError(
                f"{self.folder} holds clips of another model, seed or set of prompts: remove it or name another folder"
            )
        return seconds


def sample_clips(
    sampler: Sampler,
    prompts: Sequence[Prompt],
    folder: Path,
    *,
    seed: int,
    batch: int | None = None,
    rank: int = 0,
    size: int = 1,
    progress: CountProgress = lambda done, total: None,
) -> Samples:
    """Sample what is missing in `folder`, of the batches of process `rank` of `size`; `batch` None is `batch_size`.

    `progress` counts this process's clips. Raises UserError if the folder holds clips made from something else.
    """
    batch = batch or batch_size(sampler.model)
    key = _key(sampler.identity, seed, batch, prompts)
    samples = Samples(folder, tuple(prompts), batch, seed, sampler.steps, sampler.network_calls, key)
    samples.check_folder()
    if rank == 0 and isinstance(sampler.model, PlacedModel):
        write_json(folder / _PLACEMENT_FILE, {"tiling": sampler.model.placement.tiling})
    own = samples.starts()[rank::size]
    missing = [start for start in own if not samples.has_batch(start)]
    total = sum(len(samples.indices(start)) for start in own)
    done = total - sum(len(samples.indices(start)) for start in missing)
    if done:
        progress(done, total)
    batches = [(start, samples.texts(start)) for start in missing]
    for start in encoded_first(sampler.model, batches, sampler.unconditional):
        _sample_batch(sampler, samples, start)
        done += len(samples.indices(start))
        progress(done, total)
    return samples


def agree_on_tiling(placement: Placement, model: TextToVideo, folder: Path, ranks: Ranks) -> Placement:
    """A placement that decodes alike in all processes, and as the clips that `folder` holds already.

    Where tiling is not asked for it is what those clips were decoded with, or else tiles if any process lacks the
    memory to do without. All ranks call it.
    """
    if placement.tiling is not None:
        return placement
    needed = ranks.any_rank(bool(placement.fit_to(model).tiling))

    def decide() -> bool:
        path = folder / _PLACEMENT_FILE
        if not path.exists():
            return needed
        record = read_json(path, "the record of how clips were decoded", "remove the folder or name another")
        return bool(record.get("tiling"))

    return replace(placement, tiling=ranks.decide(decide))


def _sample_batch(sampler: Sampler, samples: Samples, start: int) -> None:
    indices = samples.indices(start)
    generator = generator_for(samples.seed, "samples", start)
    began = time.perf_counter()
    latents = sampler(samples.texts(start), generator)
    seconds = time.perf_counter() - began
    fps = sampler.model.settings.fps
    for i, video in zip(indices, sampler.model.decode_video(latents), strict=True):
        write_atomically(samples.clip_file(i), save({"video": np.ascontiguousarray(video)}, {"fps": str(fps)}))
    seed = generator.initial_seed()
    record = {"key": samples.key, "seed": seed, "seconds": seconds, "prompts": samples.texts(start)}
    write_atomically(samples.record_file(start), json.dumps(record, ensure_ascii=False, indent=1).encode())


def _key(identity: str, seed: int, batch: int, prompts: Sequence[Prompt]) -> str:
    about = [identity, seed, batch, [asdict(prompt) for prompt in prompts]]
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]


def _read_clip(path: Path) -> Video:
    try:
        with safe_open(path, framework="numpy") as file:
            return Video(file.get_tensor("video"), float(file.metadata()["fps"]))
    except (OSError, SafetensorError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read: remove it and run the same command again") from error
