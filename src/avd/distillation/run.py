"""A distillation run from its recipe: model, data, folder and loop, wired."""

from __future__ import annotations

import os
from pathlib import Path

from avd.config import Recipe
from avd.distillation.data import RunData, record_data
from avd.distillation.model_record import record_model
from avd.distillation.monitoring.monitor import Monitor
from avd.distillation.monitoring.watch import RunWatch, Tell
from avd.distillation.numbers import record_numbers
from avd.distillation.preflight import ResolvedRun, preflight
from avd.distillation.saved_student import SETTINGS_OF_RUN
from avd.distillation.task import DistillTask
from avd.engine.loop import Progress, Schedule, run
from avd.engine.ranks import process_group
from avd.engine.sources import encode_world
from avd.engine.trackers import open_trackers
from avd.methods.adapter_rates import explain_low_rates
from avd.models.devices import matmul_precision, read_launch
from avd.models.interpolator import FrameInterpolator
from avd.models.settings import write_settings
from avd.types import CountProgress


def distill_run(
    recipe: Recipe,
    output: Path,
    *,
    resume: bool,
    encoding: CountProgress,
    measuring: CountProgress,
    progress: Progress,
    tell: Tell,
) -> Path:
    """Distil as `recipe` says in the folder `output`, with as many processes as torchrun started; the student's folder.

    `encoding` counts clips of the world, `measuring` those of the monitors' references; `tell` shows a line. Raises
    UserError as `preflight`, which changes nothing, and Stopped if a monitor or a signal ends the run.
    """
    launch = read_launch(os.environ, connects=True)
    resolved = preflight(recipe, output, resume=resume, launch=launch)
    model, folder = resolved.model, resolved.folder
    low_rates = explain_low_rates(recipe)
    if low_rates is not None and launch.rank == 0:
        tell(low_rates)
    with process_group(recipe.compute) as ranks, matmul_precision(ranks.device, tf32=recipe.compute.tf32):
        folder.lock(ranks)
        resolved.starts.check_ranks(ranks)
        interpolator = None if resolved.interpolator is None else FrameInterpolator.load(resolved.interpolator)
        if ranks.is_main:
            record_data(folder.path, resolved.data)
            record_model(folder.path, model, resolved.starts.high_weights)
            record_numbers(folder.path)
        data = _load(resolved, recipe, encoding)
        model.drop("text_encoder", "vae")  # all is latents and embeddings by now
        task = DistillTask(recipe, model, data, interpolator, ranks, resolved.starts)
        resolved.starts.close()
        if ranks.is_main:
            write_settings(folder.path, task.student_settings, SETTINGS_OF_RUN)
        monitor = None
        if recipe.monitors.every:
            assert data.clips is not None, "see `distillation.preflight`"
            monitor = Monitor(recipe, data.clips, task.sampler(), ranks)
        if monitor is not None:
            monitor.find_references(folder.path, tell, measuring)
        with open_trackers(recipe, folder.path, tell, ranks) as trackers:
            watch = RunWatch(task, monitor, folder, trackers, tell)
            run(task, folder, _schedule(recipe), progress, watch, ranks)
    return output / "student"


def _load(resolved: ResolvedRun, recipe: Recipe, encoding: CountProgress) -> RunData:
    """The prepared data, or the built-in world, encoded now."""
    model = resolved.model
    if resolved.data is not None:
        return resolved.data.load(model.settings.negative_prompt, model.latent_shape())
    assert resolved.world is not None
    return RunData.encode(model, encode_world(model, resolved.world, recipe.data.world_clips, progress=encoding))


def _schedule(recipe: Recipe) -> Schedule:
    training = recipe.training
    return Schedule(
        training.updates,
        checkpoint_every=training.checkpoint_every,
        keep_checkpoints=training.keep_checkpoints,
        sample_every=training.sample_every,
        checkpoint_minutes=training.checkpoint_minutes or 0.0,
        sample_minutes=training.sample_minutes or 0.0,
        stop_grace=training.stop_grace,
    )
