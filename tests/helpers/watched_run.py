"""A small distillation run that is watched, for tests to start, end and resume."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from avd.config import Recipe, load_recipe
from avd.distillation.monitoring.monitor import Monitor
from avd.distillation.monitoring.watch import RunWatch
from avd.distillation.task import DistillTask
from avd.engine.loop import Schedule, run
from avd.engine.ranks import SINGLE_PROCESS, Ranks
from avd.engine.run_folder import RunFolder
from avd.engine.trackers import Tracker, Trackers
from helpers.tiny import tiny_data, tiny_interpolator, tiny_model

SMALL = (
    "training.batch=2", "training.checkpoint_every=2", "training.sample_every=0", "training.keep_checkpoints=3",
    "fake_score.updates=2", "monitors.every=1", "monitors.clips=2",
)  # fmt: skip
COLLAPSING = (
    "monitors.limits.motion=1000", "monitors.limits.fake_score=null", "monitors.limits.low_weights=null",
    "monitors.patience=2",
)  # fmt: skip
"""The teacher's motion a thousand times over is more than any student has."""


def watched_recipe(*overrides: str) -> Recipe:
    return load_recipe("avd", [*SMALL, *overrides])


def watched_task(recipe: Recipe, ranks: Ranks = SINGLE_PROCESS) -> DistillTask:
    model = tiny_model()
    return DistillTask(recipe, model, tiny_data(model), tiny_interpolator(), ranks)


def monitor_of(task: DistillTask) -> Monitor | None:
    """The monitor that the task's recipe asks for."""
    recipe = task.recipe
    return Monitor(recipe, task.data.clips, task.sampler(), task.ranks) if recipe.monitors.every else None


def watched(
    path: Path,
    updates: int,
    *overrides: str,
    resume: bool = False,
    task: DistillTask | None = None,
    messages: list[str] | None = None,
    trackers: Mapping[str, Tracker] | None = None,
) -> DistillTask:
    """Run to `updates`; what is shown is appended to `messages`. Returns the task."""
    recipe = watched_recipe(f"training.updates={updates}", *overrides)
    task = watched_task(recipe) if task is None else task
    tell = (lambda text: None) if messages is None else messages.append
    folder = RunFolder(path, resume=resume, recipe_text=recipe.to_yaml(), owner=task.ranks.is_main)
    folder.lock(task.ranks)
    monitor = monitor_of(task)
    if monitor is not None:
        monitor.find_references(path, tell)
    every = recipe.training
    schedule = Schedule(updates, every.checkpoint_every, every.keep_checkpoints, sample_every=every.sample_every)
    watch = RunWatch(task, monitor, folder, Trackers(trackers or {}, tell), tell)
    run(task, folder, schedule, lambda done, updates, metrics, left: None, watch, task.ranks)
    return task
