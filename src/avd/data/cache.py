"""The latent cache: clips and captions encoded once, read at random ever after.

A cache is a folder:

    shard-00000.safetensors   `latents` (N, C, F, H, W), whitened, of the cache's dtype; the metadata entry `items` is
    shard-00001.safetensors   JSON: the `Item` of each of the N
    ...
    skipped.jsonl             the files left out, and why; only if there are any
    manifest.json             what the cache holds and by whom it was encoded, with the SHA-256 of each shard
    texts.json, texts-*       its captions, encoded, and other texts that a run needs (see `avd.data.texts`)

A manifest is written once all shards are, so a folder without one is not, or not yet, a cache; nor is one that lacks
some of its captions. Versions 2 and 3 of the format, which are read and no longer written, hold the prompts of their
clips in the shards (see `avd.data.shard_prompts`); texts can be added to them.
"""

from __future__ import annotations

import hashlib
import json
import math
import operator
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from avd.data.shard_prompts import ShardPrompts
from avd.data.tensor_files import ShardRecord, check_file, open_shard
from avd.data.texts import TEXTS, EncodedTexts
from avd.files import read_json, read_text
from avd.types import Conditions, UserError

FORMAT = "avd-latent-cache"
VERSION = 4
_READ = (2, 3, 4)
MANIFEST = "manifest.json"
JOURNAL = "journal.jsonl"
SKIPPED = "skipped.jsonl"
_PART = "part-"


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


def source_seconds(items: Iterable[Item]) -> float:
    """How long the files last that clips were cut from, each counted once."""
    of_file: dict[str, float] = {}
    for item in items:
        of_file[item.file] = max(of_file.get(item.file, 0.0), item.source_seconds)
    return sum(of_file.values())


class PromptSource(Protocol):
    """Prompts, encoded, and their words; those of a `LatentSource` are its clips' captions."""

    def __len__(self) -> int: ...

    @property
    def captions(self) -> Sequence[str]: ...

    def prompts(self, indices: Sequence[int]) -> Conditions:
        """The conditions of the prompts at `indices`, float32, on the CPU."""
        ...


class LatentSource(PromptSource, Protocol):
    """Clips, encoded: whitened latents, the conditions of their prompts, and the prompts themselves."""

    def latents(self, indices: Sequence[int]) -> Tensor:
        """Whitened latents (B, C, F, H, W) of the clips at `indices`, float32, on the CPU."""
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
            self._shards = [ShardRecord(**record) for record in manifest["shards"]]
            old = holds_prompts(manifest)
            self._in_shards = ShardPrompts(self.path, self._shards, manifest) if old else None
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise UserError(f"{self.path / MANIFEST} is damaged ({error}): prepare the cache again") from error
        self.items: list[Item] = []
        for record in self._shards:
            items, shape = read_shard_header(self.path / record.file)
            if len(items) != record.items or shape != self.latent_shape:
                raise UserError(f"{self.path / record.file} does not fit the manifest: prepare the cache again")
            self.items += items
        self._ends = list(accumulate(record.items for record in self._shards))
        self.texts = EncodedTexts(self.path) if (self.path / TEXTS).exists() else None
        """The texts that are encoded here; None if there are none, as in the caches of earlier versions."""
        if self._in_shards is not None:
            self._in_shards.check()
        elif self.texts is None or self.texts.lacking(self.captions):
            raise UserError(_unfinished(self.path))

    def __len__(self) -> int:
        return len(self.items)

    @property
    def captions(self) -> list[str]:
        return [item.caption for item in self.items]

    @property
    def content(self) -> str:
        """A hash of what the clips and their prompts are, wherever the folder lies."""
        prompts = None if self.texts is None or self._in_shards is not None else self.texts.dtype
        parts = (self.identity, prompts, *(record.sha256 for record in self._shards))
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    @property
    def condition_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of one prompt's tensor, by name."""
        if self._in_shards is not None:
            return self._in_shards.shapes
        assert self.texts is not None
        return self.texts.condition_shapes

    def latents(self, indices: Sequence[int]) -> Tensor:
        gathered = torch.empty(len(indices), *self.latent_shape)
        for shard, places in self._places(indices).items():
            with open_shard(self.path / self._shards[shard].file) as handle:
                latents = handle.get_slice("latents")
                for row, offset in places:
                    gathered[row] = latents[offset]
        return gathered

    def prompts(self, indices: Sequence[int]) -> Conditions:
        if self._in_shards is not None:
            return self._in_shards.conditions(len(indices), self._places(indices))
        assert self.texts is not None
        return self.texts.conditions([self.items[index].caption for index in indices])

    def verify(self) -> None:
        """Read everything and compare checksums. Raises `UserError` naming the first file that has changed."""
        for record in self._shards:
            check_file(self.path, record)
        if self.texts is not None:
            self.texts.verify()

    def _places(self, indices: Sequence[int]) -> dict[int, list[tuple[int, int]]]:
        """The shards that are needed, by number, with (row of the result, row of the shard) of what is needed."""
        by_shard: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for row, index in enumerate(indices):
            if not 0 <= index < len(self):
                raise IndexError(f"index {index} of a cache of {len(self)} clips")
            shard = bisect_right(self._ends, index)
            by_shard[shard].append((row, index - self._ends[shard] + self._shards[shard].items))
        return by_shard


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
        if is_begun(path):
            raise UserError(_unfinished(path))
        raise UserError(f"{path} is not a latent cache: there is no {MANIFEST} in it")
    manifest = read_json(path / MANIFEST, "the manifest", "prepare the cache again")
    if manifest.get("format") != FORMAT:
        raise UserError(f"{path} is not a latent cache: its {MANIFEST} is of another kind")
    if manifest.get("version") not in _READ:
        raise UserError(
            f"the latent cache {path} has format version {manifest.get('version')}, "
            f"this program reads {_READ[0]} to {_READ[-1]}: prepare the cache again"
        )
    return manifest


def part_folder(cache: Path, number: int) -> Path:
    """Where a part of a cache is written; see `avd.data.parts`."""
    return cache / f"{_PART}{number:05d}"


def is_begun(cache: Path) -> bool:
    """Whether a folder, which need not exist, is a cache that is being written, or was when it was interrupted."""
    return (cache / JOURNAL).exists() or any(cache.glob(f"{_PART}*/"))


def holds_prompts(manifest: Mapping[str, Any]) -> bool:
    """Whether a cache's shards hold the prompts of their clips, as those of earlier versions do."""
    return int(manifest["version"]) < 4


def read_shard_header(path: Path) -> tuple[list[Item], tuple[int, ...]]:
    """A shard's items, and the shape of one latent. Raises `UserError` as `open_shard`."""
    with open_shard(path) as handle:
        if "latents" not in handle.keys():  # noqa: SIM118  # it is no dict
            raise UserError(f"the shard {path} holds no latents: prepare the cache again")
        metadata, latents = handle.metadata() or {}, tuple(handle.get_slice("latents").get_shape())
    try:
        items = [Item(**record) for record in json.loads(metadata["items"])]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"the shard {path} names no clips ({error!r}): prepare the cache again") from error
    if len(items) != latents[0]:
        raise UserError(f"the shard {path} holds {latents[0]} latents of {len(items)} clips: prepare the cache again")
    return items, latents[1:]


def _unfinished(path: Path) -> str:
    return f"the latent cache {path} is unfinished: run the command that began it again"


def read_skipped(cache: Path) -> list[Skip]:
    """The files that a finished cache leaves out."""
    path = cache / SKIPPED
    if not path.exists():
        return []
    try:
        return [Skip(**json.loads(line)) for line in read_text(path).split("\n") if line]
    except (TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged: prepare the cache again") from error
