"""Kill `avd distill` with signal 9 in the middle of things, and resume it.

    python kill_and_resume.py ROOT MOMENT ...

does so for each of the MOMENTS, in the run folder ROOT/MOMENT. Every command is a process of its own; they are forks,
so that PyTorch is loaded once.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from avd.distillation import sampler, task
from avd.distillation.step import TrainingStep
from avd.engine import checkpoint
from avd.engine.run_folder import RunFolder
from avd.models.wan.model import VideoModel
from helpers.command import avd
from helpers.killing import before, before_rename_to, die, in_a_fork

UPDATES = 4


def half_written(call: int) -> None:
    """Die when half of a checkpoint's tensors are on disk."""
    original, calls = checkpoint.save_file, 0

    def torn(tensors: Any, path: Path, metadata: Any) -> None:
        nonlocal calls
        calls += 1
        original(tensors, path, metadata)
        if calls == call:
            os.truncate(path, path.stat().st_size // 2)
            die()

    checkpoint.save_file = torn


def half_a_line() -> None:
    """Die in the middle of a line of metrics."""

    def torn(self: RunFolder, update: int, values: object) -> None:
        with self.metrics.open("a") as file:
            file.write('{"update": 0, "stu')
        die()

    RunFolder.log = torn  # type: ignore[method-assign]


MOMENTS: dict[str, Callable[[], None]] = {
    "first write": lambda: before_rename_to("recipe.yaml"),
    "encoding": lambda: before(VideoModel, "encode_video", 1),
    "sampling the teacher": lambda: before(sampler, "sample_teacher", 1),
    "first update": lambda: before(TrainingStep, "run", 1),
    "metrics": half_a_line,
    "first checkpoint": lambda: half_written(1),
    "later update": lambda: before(TrainingStep, "_update_auxiliary", 13),
    "later checkpoint": lambda: half_written(3),
    "checkpoint's rename": lambda: before_rename_to("step-0000003"),
    "removal of old checkpoints": lambda: before(shutil, "rmtree", 1),
    "aside with an old checkpoint": lambda: before_rename_to("step-0000001.old.writing"),
    "samples": lambda: before(task, "write_preview", 1),
    "export": lambda: before(VideoModel, "save", 1),
    "export's end": lambda: before(task.FrameInterpolator, "save", 1),
    "export's rename": lambda: before_rename_to("student"),
}


def kill_and_resume(run: Path, moment: Callable[[], None]) -> None:
    command = ("distill", "small.yaml", "--output", run, "--updates", UPDATES)

    def killed() -> int:
        moment()
        return avd(*command)

    assert in_a_fork(killed) == -signal.SIGKILL
    assert in_a_fork(lambda: avd(*command, "--resume")) == 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name in sys.argv[2:]:
        kill_and_resume(Path(sys.argv[1]) / name, MOMENTS[name])
