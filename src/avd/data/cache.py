"""The latent cache: clips and captions encoded once, read at random ever after.

A cache is a folder:

    shard-00000.safetensors   `latents` (N, C, F, H, W), whitened, and `condition.<name>` (P, ...) for each tensor of
    shard-00001.safetensors   `avd.types.Conditions`, all of the cache's dtype; `prompt_rows` (N,), which of the P
    ...                       different prompts each of the N clips has; the metadata entry `items` is JSON: caption,
                              file, start and source_seconds of each of the N
    skipped.jsonl             the files left out, and why; only if there are any
    manifest.json             what the cache holds and by whom it was encoded, with the SHA-256 of each shard

A manifest is written last, so a folder without one is not, or not yet, a cache. Version 2 of the format, which is read
and no longer written, holds the one tensor `prompts` (P, L, D), which is "embedding".
"""

from __future__ import annotations

import hashlib
import json
import math
import operator
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from avd.files import read_json, read_text
from avd.types import Conditions, UserError

FORMAT = "avd-latent-cache"
VERSION = 3
_READ = (2, 3)
_PREFIX = "condition."
MANIFEST = "manifest.json"
JOURNAL = "journal.jsonl"
SKIPPED = "skipped.jsonl"
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Geometry:
    """Size of the clips behind the latents: frames, height and width in pixels, frames per second."""

    frames: int
    height: int
    width: int
    fps: float

    def __post_init__(self) -> None:
        """Raises TypeError or ValueError for what cannot be, as a damaged file may hold."""
        if min(map(operator.index, (self.frames, self.height, self.width))) < 1 or not 0 < self.fps < math.inf:
            raise ValueError(f"clips of {self.frames} frames of {self.height} x {self.width} at {self.fps} fps")


@dataclass(frozen=True)
class Item:
    """A clip of a cache: its caption, the file it was cut from, and where in it the clip starts, in seconds.

    `source_seconds` is the length of the full file, or at least of what was read of it. `repeated` of the clip's frames
    show what the one before shows, as in footage stored at more frames per second than it was made with.
    """

    caption: str
    file: str
    start: float = 0.0
    source_seconds: float = 0.0
    repeated: int = 0


@dataclass(frozen=True)
class Skip:
    """A file left out, or one window of it: `reason` in a word or two, `detail` in a sentence.

    `kept` is the number of its clips that are in the cache all the same, because they stand before the trouble.
    `start`, in seconds, is that of a window left out by itself; None: it is the file.
    """

    file: str
    reason: str
    detail: str
    kept: int = 0
    start: float | None = None


@dataclass(frozen=True)
class ShardRecord:
    """A complete shard as the journal and the manifest name it."""

    file: str
    items: int
    sha256: str


def source_seconds(items: Iterable[Item]) -> float:
    """How long the files last that clips were cut from, each counted once."""
    of_file: dict[str, float] = {}
    for item in items:
        of_file[item.file] = max(of_file.get(item.file, 0.0), item.source_seconds)
    return sum(of_file.values())


class LatentSource(Protocol):
    """Clips, encoded: whitened latents, the conditions of their prompts, and the prompts themselves."""

    def __len__(self) -> int: ...

    @property
    def captions(self) -> Sequence[str]: ...

    def latents(self, indices: Sequence[int]) -> Tensor:
        """Whitened latents (B, C, F, H, W) of the clips at `indices`, float32, on the CPU."""
        ...

    def prompts(self, indices: Sequence[int]) -> Conditions:
        """The conditions of the prompts of the clips at `indices`, float32, on the CPU."""
        ...


class MemoryLatents:
    """A `LatentSource` over tensors already in memory: latents (N, C, F, H, W), N rows of conditions, N captions."""

    def __init__(self, latents: Tensor, prompts: Conditions, captions: Sequence[str]) -> None:
        assert len(latents) == len(prompts) == len(captions)
        self._latents, self._prompts = latents, prompts
        self.captions = list(captions)

    def __len__(self) -> int:
        return len(self.captions)

    def latents(self, indices: Sequence[int]) -> Tensor:
        return self._latents[list(indices)].float()

    def prompts(self, indices: Sequence[int]) -> Conditions:
        tensors = self._prompts.tensors
        return Conditions({name: tensor[list(indices)].float() for name, tensor in tensors.items()})


class LatentCache:
    """A finished cache, a `LatentSource` that holds no latents in memory.

    Each read opens a memory map of the shards it needs, takes the rows it needs and closes it again. Opening a cache
    reads every shard's header. Raises `UserError` if `path` is missing, unfinished, not a cache, or of another format
    version, and, naming the shard, if a shard is missing, cut short or foreign. Flipped bits show in `verify` only.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        manifest = read_manifest(self.path)
        try:
            self.identity = str(manifest["identity"])
            self.geometry = Geometry(**manifest["geometry"])
            self.latent_shape = tuple(manifest["latent_shape"])
            self.condition_shapes = _condition_shapes(manifest)
            """The shape of one prompt's tensor, by name."""
            self._names = condition_names(manifest["version"], self.condition_shapes)
            self._shards = [ShardRecord(**record) for record in manifest["shards"]]
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise UserError(f"{self.path / MANIFEST} is damaged ({error}): prepare the cache again") from error
        self.items: list[Item] = []
        for record in self._shards:
            items, shapes = read_shard_header(self.path / record.file, manifest["version"])
            if len(items) != record.items or shapes != (self.latent_shape, self.condition_shapes):
                raise UserError(f"{self.path / record.file} does not fit the manifest: prepare the cache again")
            self.items += items
        self._ends = list(accumulate(record.items for record in self._shards))

    def __len__(self) -> int:
        return len(self.items)

    @property
    def captions(self) -> list[str]:
        return [item.caption for item in self.items]

    def latents(self, indices: Sequence[int]) -> Tensor:
        gathered = torch.empty(len(indices), *self.latent_shape)
        for handle, places in self._places(indices):
            latents = handle.get_slice("latents")
            for row, offset in places:
                gathered[row] = latents[offset]
        return gathered

    def prompts(self, indices: Sequence[int]) -> Conditions:
        gathered = {name: torch.empty(len(indices), *shape) for name, shape in self.condition_shapes.items()}
        for handle, places in self._places(indices):
            rows = handle.get_tensor("prompt_rows").tolist()
            for name, stored in self._names.items():
                tensor = handle.get_slice(stored)
                for row, offset in places:
                    gathered[name][row] = tensor[rows[offset]]
        return Conditions(gathered)

    def verify(self) -> None:
        """Read everything and compare checksums. Raises `UserError` naming the first shard that has changed."""
        for record in self._shards:
            with (self.path / record.file).open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            if found != record.sha256:
                raise UserError(
                    f"{self.path / record.file} has changed since it was written: SHA-256 is {found[:12]}..., "
                    f"the manifest says {record.sha256[:12]}...: prepare the cache again"
                )

    def _places(self, indices: Sequence[int]) -> Iterator[tuple[Any, list[tuple[int, int]]]]:
        """Each shard that is needed, open, with (row of the result, row of the shard) of what is needed of it."""
        by_shard: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for row, index in enumerate(indices):
            if not 0 <= index < len(self):
                raise IndexError(f"index {index} of a cache of {len(self)} clips")
            shard = bisect_right(self._ends, index)
            by_shard[shard].append((row, index - self._ends[shard] + self._shards[shard].items))
        for shard, places in by_shard.items():
            with open_shard(self.path / self._shards[shard].file) as handle:
                yield handle, places


def manifest_header(
    identity: str, geometry: Geometry, dtype: str, shard_size: int, reading: Mapping[str, Any]
) -> dict[str, Any]:
    """What two runs must agree on to write one cache. `reading` says how clips are cut from files."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "identity": identity,
        "geometry": asdict(geometry),
        **reading,
        "dtype": dtype,
        "shard_size": shard_size,
    }


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a finished cache. Raises `UserError` if the folder holds none of this format and version."""
    if not path.is_dir():
        raise UserError(f"no latent cache at {path}: there is no such folder")
    if not (path / MANIFEST).exists():
        if (path / JOURNAL).exists():
            raise UserError(f"the latent cache {path} is unfinished: run the command that began it again")
        raise UserError(f"{path} is not a latent cache: there is no {MANIFEST} in it")
    manifest = read_json(path / MANIFEST, "the manifest", "prepare the cache again")
    if manifest.get("format") != FORMAT:
        raise UserError(f"{path} is not a latent cache: its {MANIFEST} is of another kind")
    if manifest.get("version") not in _READ:
        raise UserError(
            f"the latent cache {path} has format version {manifest.get('version')}, "
            f"this program reads {' and '.join(map(str, _READ))}: prepare the cache again"
        )
    return manifest


@contextmanager
def open_shard(path: Path) -> Iterator[Any]:
    """A memory map of a shard. Raises `UserError` naming it if it is missing, cut short or foreign."""
    try:
        with safe_open(path, framework="pt") as handle:
            yield handle
    except (SafetensorError, OSError) as error:
        raise UserError(f"cannot read the shard {path} ({error}): prepare the cache again") from error


Shapes = tuple[tuple[int, ...], dict[str, tuple[int, ...]]]
"""Shapes of one latent and, by name, of one prompt's conditions."""


def read_shard_header(path: Path, version: int) -> tuple[list[Item], Shapes]:
    """A shard's items, and the shapes in it. Raises `UserError` as `open_shard`."""
    with open_shard(path) as handle:
        metadata, stored = handle.metadata() or {}, set(handle.keys())
        found = [name.removeprefix(_PREFIX) for name in sorted(stored) if name.startswith(_PREFIX)]
        names = condition_names(version, found or ["embedding"])
        missing = [name for name in ("latents", *names.values(), "prompt_rows") if name not in stored]
        if missing:
            raise UserError(f"the shard {path} holds no {missing[0]}: prepare the cache again")
        latents = tuple(handle.get_slice("latents").get_shape())
        conditions = {name: tuple(handle.get_slice(tensor).get_shape()) for name, tensor in names.items()}
        rows = handle.get_tensor("prompt_rows")
    try:
        items = [Item(**record) for record in json.loads(metadata["items"])]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"the shard {path} names no clips ({error!r}): prepare the cache again") from error
    if not len(items) == latents[0] == len(rows):
        raise UserError(f"the shard {path} holds {latents[0]} latents of {len(items)} clips: prepare the cache again")
    prompts = min(shape[0] for shape in conditions.values())
    if not ((rows >= 0) & (rows < prompts)).all():
        raise UserError(f"the shard {path} lacks prompts that its clips have: prepare the cache again")
    return items, (latents[1:], {name: shape[1:] for name, shape in conditions.items()})


def condition_names(version: int, names: Iterable[str]) -> dict[str, str]:
    """What the tensor of each of the conditions `names` is called in a shard of a format version."""
    return {name: "prompts" if version == 2 else _PREFIX + name for name in names}


def _condition_shapes(manifest: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    if manifest["version"] == 2:
        return {"embedding": tuple(manifest["prompt_shape"])}
    return {str(name): tuple(shape) for name, shape in manifest["condition_shapes"].items()}


def read_skipped(cache: Path) -> list[Skip]:
    """The files that a finished cache leaves out."""
    path = cache / SKIPPED
    if not path.exists():
        return []
    try:
        return [Skip(**json.loads(line)) for line in read_text(path).split("\n") if line]
    except (TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged: prepare the cache again") from error
