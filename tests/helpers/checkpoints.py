"""Checkpoints of one process and of many, written while the test waits."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from avd.engine.checkpoint import Piece, copy_pieces, publish, write_pieces
from avd.files import clear_unfinished


def save_checkpoint(
    folder: Path, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any], keep: int
) -> None:
    """Write checkpoint `step` under `folder` and remove all but the newest `keep`."""
    clear_unfinished(folder)
    write_pieces(folder, step, copy_pieces(tensors, first=True))
    publish(folder, step, state, keep)


def save_sharded(folder: Path, step: int, tensors: Mapping[str, Tensor], ranks: int, *, copies: int = 1) -> None:
    """Write checkpoint `step` as `ranks` ranks would that shard each tensor by its rows, `copies` times over."""
    shards = ranks // copies
    for rank in range(ranks):
        pieces = {}
        for name, tensor in tensors.items():
            rows = shard_rows(len(tensor), rank, shards)
            if rank < shards and rows:
                offset = (rows.start, *(0 for _ in tensor.shape[1:]))
                pieces[name] = Piece(tensor[rows.start : rows.stop].clone(), tuple(tensor.shape), offset)
        write_pieces(folder, step, pieces, rank, ranks)
    publish(folder, step, {}, keep=1)


def shard_rows(count: int, rank: int, ranks: int) -> range:
    """The rows, of `count`, of a rank's shard: as `torch.chunk` cuts them, the last ones may be fewer or none."""
    share = -(-count // ranks)
    return range(min(rank * share, count), min((rank + 1) * share, count))
