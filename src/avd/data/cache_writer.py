"""Writes the clips of a latent cache, over as many interruptions as it takes.

While a cache is being written, `journal.jsonl` in its folder records what is settled: a header line, then a line for
each complete shard and each skipped file. Whatever is not in the journal is done again, so an interrupted and continued
cache ends with the same bytes as one written at a stretch. The manifest then takes the journal's place. The
captions are encoded after that, by `avd.data.texts.encode_texts`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from avd.data.cache import (
    JOURNAL,
    MANIFEST,
    SKIPPED,
    VERSION,
    Geometry,
    Item,
    Skip,
    holds_prompts,
    manifest_header,
    read_manifest,
    read_shard_header,
    read_skipped,
)
from avd.data.tensor_files import DTYPES, Dtype, ShardRecord, save_shard, stored
from avd.data.video.checks import Checks
from avd.files import LOCK_FILE, append_json_line, is_unfinished, read_json_lines, write_json, write_json_lines
from avd.types import UserError

_BEFORE = {"skip_start": 0.0, "spread": False, "checks": asdict(Checks())}
"""How clips were cut by versions that could do no other, and whose manifests do not say it."""


class CacheWriter:
    """Begins a cache at `path`, or continues an unfinished one there.

    `identity` names the encoder, `geometry` the clips and `reading` how they are cut from files; `shard_size` is the
    number of clips in a shard, what an interruption can cost and what is held in memory. A finished cache opens with
    `finished` true and is never written to again.

    Attributes: `items`, the clips of complete shards, in order; `skipped`, the files left out so far; `finished`;
    `holds_prompts`, whether the shards hold the prompts of their clips too, as those of a finished cache of an earlier
    version do.

    Raises `UserError` if the folder holds anything else, or a cache begun with another identity, geometry, reading,
    dtype or shard size.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        identity: str,
        geometry: Geometry,
        shard_size: int = 64,
        dtype: Dtype = "float16",
        reading: Mapping[str, Any] | None = None,
    ) -> None:
        if shard_size < 1:
            raise UserError(f"the shard size is {shard_size}: at least 1 is needed")
        self.path = Path(path)
        self.items: list[Item] = []
        self.skipped: list[Skip] = []
        self._known_skips: set[Skip] = set()
        self._header = manifest_header(identity, geometry, dtype, shard_size, reading or {})
        self._dtype = DTYPES[dtype]
        self._shard_size = shard_size
        self._shards: list[ShardRecord] = []
        self._shape: tuple[int, ...] | None = None
        self._pending: list[Item] = []
        self._latents = torch.empty(0)
        self.holds_prompts = False
        self.finished = (self.path / MANIFEST).exists()
        if self.finished:
            self._open_finished()
        elif (self.path / JOURNAL).exists():
            self._resume()
        else:
            self._begin()

    def __len__(self) -> int:
        """Clips added so far, those of the shard under way included."""
        return len(self.items) + len(self._pending)

    @property
    def room(self) -> int:
        """Clips that the shard under way still takes, at least 1."""
        return self._shard_size - len(self._pending)

    def add(self, latent_CFHW: Tensor, item: Item) -> None:
        """Append a clip: its whitened latent. Writes a shard when that makes one full.

        Raises `UserError` if the shape differs from the clips before, or a value is not finite in the cache's dtype.
        """
        assert not self.finished
        latent = stored(latent_CFHW, self._dtype, f"{item.file}: the latent")
        shape = tuple(latent.shape)
        self._shape = self._shape or shape
        if shape != self._shape:
            raise UserError(f"{item.file}: its latent has the shape {shape}, earlier ones had {self._shape}")
        if not self._pending:
            self._latents = torch.empty(self._shard_size, *shape, dtype=self._dtype)
        self._latents[len(self._pending)] = latent
        self._pending.append(item)
        if self.room == 0:
            self._write_shard()

    def skip(self, skip: Skip) -> None:
        """Record what is left out; a continued run finds it in `skipped`, and may record it again in vain."""
        assert not self.finished
        if skip not in self._known_skips:
            self._known_skips.add(skip)
            self.skipped.append(skip)
            self._log({"skip": asdict(skip)})

    def finish(self) -> None:
        """Write what is pending, the list of what was skipped and the manifest."""
        assert not self.finished
        if self._pending:
            self._write_shard()
        _write_manifest(self.path, self._header, self._shape, self._shards, self.skipped)
        (self.path / JOURNAL).unlink()
        self.finished = True

    def _begin(self) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"{self.path} is a file: name a new folder for the latent cache")
        if self.path.exists() and not all(is_unfinished(e) or e.name == LOCK_FILE for e in self.path.iterdir()):
            raise UserError(f"{self.path} holds other files: name a new folder for the latent cache")
        write_json_lines(self.path / JOURNAL, [self._header])

    def _resume(self) -> None:
        path = self.path / JOURNAL
        remedy = f"delete {self.path} and prepare the cache again"
        # A crash can cut the last line short; it is dropped, and what it recorded is done again.
        lines = read_json_lines(path, remedy)
        try:
            header, *events = lines
            shards = [ShardRecord(**event["shard"]) for event in events if "shard" in event]
            self.skipped = [Skip(**event["skip"]) for event in events if "skip" in event]
        except (ValueError, TypeError) as error:
            raise UserError(f"{path} is damaged: {remedy}") from error
        _refuse_to_mix(self.path, self._header, header)
        self._known_skips = set(self.skipped)
        write_json_lines(path, lines)
        self._take(shards)

    def _open_finished(self) -> None:
        manifest = read_manifest(self.path)
        found = _BEFORE | manifest if holds_prompts(manifest) else manifest
        _refuse_to_mix(self.path, self._header, found | {"version": VERSION})  # what can be read is left as it is
        # A crash between writing the manifest and removing the journal leaves both.
        (self.path / JOURNAL).unlink(missing_ok=True)
        self.skipped = read_skipped(self.path)
        self.holds_prompts = holds_prompts(manifest)
        self._take([ShardRecord(**record) for record in manifest["shards"]])

    def _take(self, shards: list[ShardRecord]) -> None:
        """Count complete shards as written."""
        self._shards = shards
        for record in shards:
            items, self._shape = read_shard_header(self.path / record.file)
            self.items += items

    def _write_shard(self) -> None:
        metadata = {"items": json.dumps([asdict(item) for item in self._pending], ensure_ascii=False)}
        path = self.path / f"shard-{len(self._shards):05d}.safetensors"
        count = len(self._pending)
        self._shards.append(save_shard(path, count, {"latents": self._latents[:count]}, metadata))
        self._log({"shard": asdict(self._shards[-1])})
        self.items += self._pending
        self._pending.clear()

    def _log(self, event: dict[str, Any]) -> None:
        append_json_line(self.path / JOURNAL, event, durable=True)


def check_begun(path: Path, header: Mapping[str, Any]) -> None:
    """Raise `UserError` if the cache at `path` was begun with another header than `manifest_header` gives this run.

    One that is not begun may become anything. Nothing is written, so others may be writing it meanwhile.
    """
    try:
        found = next(iter(read_json_lines(path / JOURNAL)), None)
    except UserError:  # it is finished, perhaps since a moment ago
        found = read_manifest(path) if (path / MANIFEST).exists() else None
    if found is not None:
        _refuse_to_mix(path, header, found)


def _refuse_to_mix(path: Path, header: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    for key, value in header.items():
        if found.get(key) != value:
            raise UserError(
                f"the latent cache {path} was begun with {key} {found.get(key)!r}, this run has {value!r}: "
                "choose another folder"
            )


def join_caches(path: Path, parts: Sequence[CacheWriter]) -> None:
    """Make `path` a cache of all clips of `parts`, finished caches in folders of it, in their order.

    What they skipped is listed, and the manifest, which is written last, names their shards.
    """
    assert all(part.finished and part.path.parent == path for part in parts)
    shards = [replace(record, file=f"{part.path.name}/{record.file}") for part in parts for record in part._shards]
    shape = next(part._shape for part in parts if len(part))
    _write_manifest(path, parts[0]._header, shape, shards, [skip for part in parts for skip in part.skipped])


def _write_manifest(
    path: Path,
    header: Mapping[str, Any],
    shape: tuple[int, ...] | None,
    shards: Sequence[ShardRecord],
    skipped: Sequence[Skip],
) -> None:
    if skipped:
        write_json_lines(path / SKIPPED, (asdict(skip) for skip in skipped))
    manifest = {
        **header,
        "count": sum(record.items for record in shards),
        "latent_shape": shape,
        "shards": [asdict(record) for record in shards],
    }
    write_json(path / MANIFEST, manifest, indent=1, ascii_only=False)
