"""What resuming costs with the number of ranks: files opened and seconds, for one rank of many.

One process writes the parts of 8, 16, 32 and 64 ranks, as small as they may be but with as many tensors as a full
distillation of Wan2.1 1.3B has (825 weights; student, fake score and average; two moments and a step for those that
learn), and reads the shards of single ranks back: of as many ranks as saved, of half as many and of twice as many. No
network is built and no data to speak of is read: what is timed is finding the pieces.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from avd.engine import checkpoint
from avd.engine.checkpoint import Piece, Reader, SavedTensors, publish, write_pieces

_ROWS, _WIDTH = 2, 2
"""The shape of a rank's shard: twice as many ranks still have a row each."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[8, 16, 32, 64])
    parser.add_argument("--weights", type=int, default=825, help="weights of one network")
    parser.add_argument("--readers", type=int, default=3, help="ranks that are timed, spread over all")
    options = parser.parse_args()
    first: float | None = None
    for ranks in options.ranks:
        with tempfile.TemporaryDirectory() as folder:
            path = write(Path(folder), ranks, options.weights)
            for readers in (ranks, ranks // 2, 2 * ranks):
                shards = range(0, readers, max(1, readers // options.readers))
                opens, seconds = zip(*(read(path, Reader(shard, readers, readers)) for shard in shards), strict=True)
                median = statistics.median(seconds)
                first = first or median
                print(
                    f"saved by {ranks:3d}, read by {readers:3d} ranks: {max(opens)} files opened per rank, "
                    f"{median:.2f} s, {median / first:.2f} times the first line's",
                    flush=True,
                )


def write(folder: Path, ranks: int, weights: int) -> Path:
    """A checkpoint of `ranks` ranks, with `_ROWS` rows of each tensor on each."""
    names = list(_names(weights))
    for rank in range(ranks):
        rows, full = torch.full((_ROWS, _WIDTH), float(rank)), (_ROWS * ranks, _WIDTH)
        pieces = {name: Piece(rows.clone(), full, (_ROWS * rank, 0)) for name in names}
        if rank == 0:
            pieces |= {f"{role}_optimizer.{i}.step": _scalar() for role in _LEARN for i in range(weights)}
        write_pieces(folder, 1, pieces, rank, ranks)
    publish(folder, 1, {}, keep=1)
    return folder / "step-0000001"


_LEARN = ("student", "fake_score")


def _names(weights: int) -> Iterator[str]:
    for i in range(weights):
        yield from (f"{role}.transformer.blocks.{i}.weight" for role in (*_LEARN, "average"))
        yield from (f"{role}_optimizer.{i}.{moment}" for role in _LEARN for moment in ("exp_avg", "exp_avg_sq"))


def _scalar() -> Piece:
    return Piece(torch.tensor(1.0), (), ())


def read(path: Path, reader: Reader) -> tuple[int, float]:
    """Files that one rank opens to read all of its shards, and seconds."""
    opens = []
    safe_open = checkpoint.safe_open
    checkpoint.safe_open = lambda *given, **how: (opens.append(given), safe_open(*given, **how))[1]
    started = time.perf_counter()
    with SavedTensors(path, reader) as saved:
        for name in saved:
            own_shard(saved, name, reader)
    seconds = time.perf_counter() - started
    checkpoint.safe_open = safe_open
    return len(opens), seconds


def own_shard(saved: SavedTensors, name: str, reader: Reader) -> Tensor:
    """The rows of a tensor that `torch.chunk` gives the reader."""
    shape = saved.shape(name)
    if not shape:
        return saved[name]
    share = -(-shape[0] // reader.shards)
    start = min(reader.shard * share, shape[0])
    return saved.region(name, (start, 0), (min(share, shape[0] - start), _WIDTH))


if __name__ == "__main__":
    main()
