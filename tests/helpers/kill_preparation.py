"""Kill preparation with signal 9 in the middle of things, and run it again.

    python kill_preparation.py VIDEOS CACHES WORKERS MOMENT ...

does so for each of the MOMENTS, in the folder CACHES/WORKERS-MOMENT. It is killed with WORKERS decoding processes, and
continued with as many after the first moment, with none after the others. Every run is a process of its own; they are
forks, so that PyTorch is loaded once. The processes that decode load this file too, so it loads no more than it must.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from avd.data import CacheWriter, ReadOptions, Summary, prepare, tensor_files
from avd.types import Conditions
from helpers.killing import before, die, in_a_fork


class Pooling:
    """An encoder whose latents are pooled pixels."""

    identity = "pooling"

    def encode_video(self, frames: np.ndarray) -> Tensor:
        pixels_BCFHW = torch.from_numpy(frames).permute(0, 4, 1, 2, 3) / 255
        return torch.nn.functional.avg_pool3d(pixels_BCFHW, (1, 8, 8))[:, :, ::4] * (1 + len(frames) / 8)

    def encode_prompts(self, prompts: list[str]) -> Conditions:
        letters = [[[float(ord(letter))] * 2 for letter in prompt[:4].ljust(4)] for prompt in prompts]
        return Conditions({"embedding": torch.tensor(letters)})

    def drop(self, *parts: str) -> None:
        """There are none."""


def run(videos: Path, cache: Path, workers: int = 0, **division: Any) -> Summary | None:
    return prepare(
        videos,
        None,
        Pooling(),
        cache,
        ReadOptions(5, 8, (16, 24), 3),
        workers=workers,
        batch_size=2,
        shard_size=4,
        **division,
    )


def half_a_shard() -> None:
    """Die when half of the second shard is on disk."""
    original, calls = tensor_files.save_file, 0

    def torn(tensors: Any, path: Path, metadata: Any) -> None:
        nonlocal calls
        calls += 1
        original(tensors, path, metadata)
        if calls == 2:
            os.truncate(path, path.stat().st_size // 2)
            die()

    tensor_files.save_file = torn


def half_a_line() -> None:
    """Die in the middle of the journal's line of the second shard, which is complete."""
    original = CacheWriter._log

    def torn(self: CacheWriter, event: dict[str, Any]) -> None:
        if "shard" in event and self._shards[1:]:
            with (self.path / "journal.jsonl").open("a") as journal:
                journal.write('{"shard": {"fi')
            die()
        original(self, event)

    CacheWriter._log = torn  # type: ignore[method-assign]


MOMENTS: dict[str, Callable[[], None]] = {
    "between windows": lambda: before(Pooling, "encode_video", 4),
    "half a shard": half_a_shard,
    "half a line": half_a_line,
    "end": lambda: before(CacheWriter, "finish", 1),
    "texts": lambda: before(Pooling, "encode_prompts", 1),
}


def kill_and_continue(videos: Path, cache: Path, moment: Callable[[], None], workers: int, later: int) -> None:
    def killed() -> int:
        moment()
        run(videos, cache, workers)
        return 0

    def continued() -> int:
        run(videos, cache, later)
        return 0

    assert in_a_fork(killed) == -signal.SIGKILL
    assert in_a_fork(continued) == 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    videos, caches, workers = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    for number, name in enumerate(sys.argv[4:]):
        kill_and_continue(videos, caches / f"{workers}-{name}", MOMENTS[name], workers, 0 if number else workers)
