"""From videos and captions to a latent cache."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from torch import Tensor

from avd.data.cache import Geometry, Item, Skip, source_seconds
from avd.data.cache_writer import CacheWriter
from avd.data.overlap import read_heldout, shared_prompts
from avd.data.plan import Captioned, Planned, plan
from avd.data.tensor_files import Dtype
from avd.data.texts import TextEncoder, encode_texts
from avd.data.video.reading import ReadOptions, RefusedWindow, VideoError
from avd.data.video.workers import Job, Outcome, decoded
from avd.types import CountProgress, UserError


class Encoder(TextEncoder, Protocol):
    """A model as preparation sees it."""

    def encode_video(self, frames: np.ndarray) -> Tensor:
        """Whitened latents (B, C, F', H', W') of uint8 clips (B, F, H, W, 3)."""
        ...

    def drop(self, *parts: str) -> None:
        """Forget parts (`text_encoder`, `vae`) until they are needed again."""
        ...


@dataclass(frozen=True)
class Summary:
    """What a cache was made of.

    `kept` clips of `files` files, `seconds` of video in all, out of the `source_seconds` that these files last; `size`
    bytes on disk. `skipped` counts what was left out by reason, `examples` has the first of each; `skipped.jsonl` in
    the cache names them all.
    """

    kept: int
    files: int
    seconds: float
    source_seconds: float
    size: int
    skipped: dict[str, int]
    examples: dict[str, Skip]


def prepare(
    videos: Path,
    captions: Path | None,
    encoder: Encoder,
    output: Path,
    reading: ReadOptions,
    *,
    file_column: str | None = None,
    caption_column: str | None = None,
    workers: int = 0,
    batch_size: int = 4,
    shard_size: int = 64,
    dtype: Dtype = "float16",
    texts: Sequence[str] = ("",),
    heldout: Sequence[Path] = (),
    warn: Callable[[str], None] | None = None,
    progress: CountProgress | None = None,
    encoding: CountProgress | None = None,
) -> Summary:
    """Encode the captioned videos of the folder or tar `videos` into a latent cache at `output`.

    `captions` is a table (see `read_captions`); None takes `captions.jsonl` in the folder, or else the text beside each
    video. Each file gives the clips that `reading` asks for; they are read by `workers` processes; 0 is this one. Files
    and windows that cannot be used, or do not pass its checks, are skipped. Then the captions of the clips are encoded,
    and `texts`, which a run needs besides: the null prompt and a negative one. `warn` is called with a line for each
    list of prompts in `heldout` that the captions overlap, `progress` with the number of captioned videos done and of
    all, `encoding` with that of texts.

    An interrupted run, repeated, resumes after the last complete shard and writes the same bytes as a run at a stretch
    (on devices that repeat their results), whatever `workers` is. A finished cache is left as it is.

    Raises `UserError` for captions or a `heldout` that cannot be read, a missing folder, an output folder in use by
    anything else, captions that have changed since the cache was begun, and if no file can be used at all.
    """
    if min(batch_size, reading.windows) < 1 or workers < 0:
        least = "at least 1, 1 and 0 are needed"
        raise UserError(f"{reading.windows} windows, batch size {batch_size}, {workers} workers: {least}")
    planned = plan(videos, captions, file_column, caption_column)
    _warn_of_overlap(planned, heldout, warn or (lambda text: None))
    writer = CacheWriter(
        output,
        identity=encoder.identity,
        geometry=Geometry(reading.frames, *reading.size, float(reading.fps)),
        reading=reading.header,
        shard_size=shard_size,
        dtype=dtype,
    )
    _refuse_other_captions(writer, planned, captions or videos)
    if not writer.finished:
        _fill(writer, planned, reading, workers, _Batch(writer, encoder, batch_size), progress)
        if len(writer) == 0:
            _give_up(writer, videos)
        writer.finish()
    encoder.drop("vae")  # it and a text encoder need not be in memory together
    own = () if writer.holds_prompts else (item.caption for item in writer.items)
    encode_texts(output, encoder, [*texts, *own], dtype=dtype, progress=encoding)
    return _summary(writer, reading.frames / reading.fps)


def _warn_of_overlap(planned: list[Planned], heldout: Sequence[Path], warn: Callable[[str], None]) -> None:
    captions = {each.caption: None for each in planned if isinstance(each, Captioned)}
    for path in heldout:
        shared = shared_prompts(captions, read_heldout(path))
        if shared:
            warn(f"{len(shared)} of {len(captions)} different captions are prompts of {path}, such as: {shared[0]}")


class _Batch:
    """Clips to be encoded together."""

    def __init__(self, writer: CacheWriter, encoder: Encoder, size: int) -> None:
        self._writer, self._encoder, self._size = writer, encoder, size
        self._items: list[Item] = []
        self._frames: list[np.ndarray] = []

    def add(self, item: Item, frames: np.ndarray) -> None:
        self._items.append(item)
        self._frames.append(frames)
        # Batches end where shards do: a continued run then forms the same batches, and results in the last bit may
        # depend on what else is in a batch.
        if len(self._items) == min(self._size, self._writer.room):
            self.encode()

    def encode(self) -> None:
        if not self._items:
            return
        latents = self._encoder.encode_video(np.stack(self._frames))
        for item, latent in zip(self._items, latents, strict=True):
            self._writer.add(latent, item)
        self._items.clear()
        self._frames.clear()


def _fill(
    writer: CacheWriter,
    planned: list[Planned],
    reading: ReadOptions,
    workers: int,
    batch: _Batch,
    progress: CountProgress | None,
) -> None:
    written = Counter(item.file for item in writer.items)
    # An interruption may have come between two windows of the last file written, and of that one only.
    last = writer.items[-1] if writer.items else None
    settled = _files_before(last.file if last else None, planned)
    settled |= {skip.file for skip in writer.skipped if skip.kept == 0 and skip.start is None}
    captioned = [each for each in planned if isinstance(each, Captioned)]
    jobs = [
        Job(each.source, last.start if last and last.file == each.source.name else None)
        for each in captioned
        if each.source.name not in settled
    ]
    done = len(captioned) - len(jobs)
    tell = progress or (lambda done, total: None)
    tell(done, len(captioned))
    with closing(decoded(jobs, reading, workers)) as results:
        for each in planned:
            if isinstance(each, Skip):
                writer.skip(each)
            elif each.source.name not in settled:
                clips = written[each.source.name]
                for outcome in next(results):
                    clips += _add(outcome, each, clips, writer, batch)
                done += 1
                tell(done, len(captioned))
    batch.encode()


def _files_before(file: str | None, planned: list[Planned]) -> set[str]:
    """The captioned files that come before one; none if that is None."""
    names = [each.source.name for each in planned if isinstance(each, Captioned)]
    return set() if file is None else set(names[: names.index(file)])


def _add(outcome: Outcome, of: Captioned, clips: int, writer: CacheWriter, batch: _Batch) -> int:
    """Add a window to the batch, or note why there is none; the number of windows that is."""
    name = of.source.name
    if isinstance(outcome, VideoError):
        writer.skip(Skip(name, outcome.reason, outcome.detail, clips))
    elif isinstance(outcome, RefusedWindow):
        writer.skip(Skip(name, outcome.reason, outcome.detail, clips, outcome.start))
    else:
        seconds, repeated = outcome.source_seconds, outcome.repeated
        batch.add(Item(of.caption, name, outcome.start, seconds, repeated), outcome.frames)
        return 1
    return 0


def _refuse_other_captions(writer: CacheWriter, planned: list[Planned], captions: Path) -> None:
    """A cache continued, or finished, with other captions would not hold what its captions say."""
    caption_of = {each.source.name: each.caption for each in planned if isinstance(each, Captioned)}
    for item in writer.items:
        if caption_of.get(item.file) != item.caption:
            raise UserError(f"{captions} changed after {writer.path} was begun ({item.file}): choose another folder")
    if writer.finished:
        settled = {item.file for item in writer.items} | {skip.file for skip in writer.skipped}
        missing = caption_of.keys() - settled
        if missing:
            raise UserError(
                f"the latent cache {writer.path} is finished without {len(missing)} files of {captions}, "
                f"such as {min(missing)}: choose another folder"
            )


def _give_up(writer: CacheWriter, videos: Path) -> None:
    first, counts = writer.skipped[0], _count_reasons(writer.skipped)
    writer.abandon()
    reasons = ", ".join(f"{count} {reason}" for reason, count in counts.items())
    raise UserError(f"no file in {videos} can be used ({reasons}); the first, {first.file}: {first.detail}")


def _summary(writer: CacheWriter, clip_seconds: float) -> Summary:
    return Summary(
        kept=len(writer),
        files=len({item.file for item in writer.items}),
        seconds=len(writer) * clip_seconds,
        source_seconds=source_seconds(writer.items),
        size=sum(entry.stat().st_size for entry in writer.path.iterdir()),
        skipped=_count_reasons(writer.skipped),
        examples={skip.reason: skip for skip in reversed(writer.skipped)},
    )


def _count_reasons(skipped: Sequence[Skip]) -> dict[str, int]:
    return dict(Counter(skip.reason for skip in skipped).most_common())
