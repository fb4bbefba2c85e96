"""Prompts as versions 2 and 3 of the cache's format hold them: in the shards of their clips, at their full length.

A shard has `condition.<name>` (P, ...) for each tensor of `avd.types.Conditions`, and `prompt_rows` (N,), which of its
P different prompts each of its N clips has. Version 2 has the one tensor `prompts` (P, L, D), which is "embedding".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from avd.data.tensor_files import PREFIX, ShardRecord, open_shard
from avd.types import Conditions, UserError


class ShardPrompts:
    """The prompts in the shards of a cache. `shapes` are those of one prompt's tensors, by name.

    Raises KeyError, TypeError, AttributeError or ValueError for a manifest that does not say them.
    """

    def __init__(self, folder: Path, records: Sequence[ShardRecord], manifest: Mapping[str, Any]) -> None:
        self._folder, self._records = folder, records
        first = manifest["version"] == 2
        shapes = {"embedding": manifest["prompt_shape"]} if first else manifest["condition_shapes"]
        self.shapes = {str(name): tuple(shape) for name, shape in shapes.items()}
        self._names = {name: "prompts" if first else PREFIX + name for name in self.shapes}

    def check(self) -> None:
        """Read the headers. Raises `UserError` naming the first shard that lacks what it should have."""
        for record in self._records:
            path = self._folder / record.file
            with open_shard(path) as handle:
                held = set(handle.keys())
                missing = [name for name in (*self._names.values(), "prompt_rows") if name not in held]
                if missing:
                    raise UserError(f"the shard {path} holds no {missing[0]}: prepare the cache again")
                found = {name: tuple(handle.get_slice(each).get_shape()) for name, each in self._names.items()}
                rows = handle.get_tensor("prompt_rows")
            if {name: shape[1:] for name, shape in found.items()} != self.shapes or len(rows) != record.items:
                raise UserError(f"{path} does not fit the manifest: prepare the cache again")
            if not ((rows >= 0) & (rows < min(shape[0] for shape in found.values()))).all():
                raise UserError(f"the shard {path} lacks prompts that its clips have: prepare the cache again")

    def conditions(self, count: int, places: Mapping[int, Sequence[tuple[int, int]]]) -> Conditions:
        """The prompts of `count` clips: by shard, (row of the result, row of the shard) of each."""
        gathered = {name: torch.empty(count, *shape) for name, shape in self.shapes.items()}
        for shard, pairs in places.items():
            with open_shard(self._folder / self._records[shard].file) as handle:
                rows = handle.get_tensor("prompt_rows").tolist()
                for name, stored in self._names.items():
                    tensor = handle.get_slice(stored)
                    for row, offset in pairs:
                        gathered[name][row] = tensor[rows[offset]]
        return Conditions(gathered)
