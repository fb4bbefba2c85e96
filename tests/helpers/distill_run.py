"""A small distillation run, for tests to start, kill and resume.

    python distill_run.py FOLDER KILLS

runs it in KILLS processes one after the other, each going on where the last was killed, with signal 9, at a random
moment. They are forks, so that PyTorch is loaded once.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import torch

from avd.config import Recipe, load_recipe
from avd.distillation.data import RunData
from avd.distillation.task import DistillTask
from avd.engine.loop import Schedule, run
from avd.engine.ranks import SINGLE_PROCESS, Ranks
from avd.engine.run_folder import RunFolder
from helpers.tiny import tiny_interpolator, tiny_model, tiny_source


def small_recipe(*overrides: str) -> Recipe:
    small = ["training.batch=2", "training.checkpoint_every=2", "training.sample_every=3", "rollout.half_rate_stages=2"]
    return load_recipe("avd", [*small, *overrides])


def small_task(recipe: Recipe, ranks: Ranks = SINGLE_PROCESS) -> DistillTask:
    """A recipe by the name of "tall" gets clips of an even number of tokens, which two ranks can share."""
    model = tiny_model()
    source = tiny_source(model, height=4 if recipe.name == "tall" else 2)
    return DistillTask(recipe, model, RunData.encode(model, source), tiny_interpolator(), ranks)


def distill(
    path: Path, updates: int, *, resume: bool = False, task: DistillTask | None = None, recipe: Recipe | None = None
) -> DistillTask:
    """Run `task`, or a small one of `recipe`, to `updates`; returns the task."""
    task = task or small_task(recipe or small_recipe())
    folder = RunFolder(path, resume=resume, recipe_text=task.recipe.to_yaml(), owner=task.ranks.is_main)
    every = task.recipe.training
    schedule = Schedule(
        updates,
        every.checkpoint_every,
        every.keep_checkpoints,
        sample_every=every.sample_every,
        stop_grace=every.stop_grace,
    )
    run(task, folder, schedule, _silent, ranks=task.ranks)
    return task


def _silent(done: int, updates: int, metrics: Mapping[str, float], left: float | None) -> None:
    """Progress nobody sees."""


def _kill_at_random(path: Path) -> None:
    """A child trains without end until it is killed, somewhere in the time that a few updates take."""
    before = _metrics(path)
    child = os.fork()
    if child == 0:
        distill(path, updates=1_000_000, resume=path.exists())
    while _metrics(path) == before:
        assert os.waitpid(child, os.WNOHANG) == (0, 0), "the run ended by itself"
        time.sleep(0.005)
    time.sleep(random.uniform(0, 0.6))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def _metrics(path: Path) -> bytes:
    metrics = path / "metrics.jsonl"
    return metrics.read_bytes() if metrics.exists() else b""


if __name__ == "__main__":
    torch.set_num_threads(1)
    for _ in range(int(sys.argv[2])):
        _kill_at_random(Path(sys.argv[1]))
