"""A distillation run from its recipe: model, data, folder and loop, wired."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import torch

from avd.config import Recipe
from avd.distillation.monitoring.monitor import Monitor
from avd.distillation.monitoring.watch import RunWatch, Tell
from avd.distillation.task import DistillTask, check_half_rate
from avd.engine.checkpoint import check_newest
from avd.engine.loop import Progress, Schedule, run
from avd.engine.optimizers import check_optimizer
from avd.engine.ranks import process_group
from avd.engine.run_folder import RunFolder
from avd.engine.sources import Progress as EncodingProgress
from avd.engine.sources import encode_world, open_cache, world_of
from avd.engine.trackers import check_trackers, open_trackers
from avd.models.family import load_model
from avd.sampling.choose import load_interpolator


def distill_run(
    recipe: Recipe, output: Path, *, resume: bool, encoding: EncodingProgress, progress: Progress, tell: Tell
) -> Path:
    """Distil as `recipe` says in the folder `output`, with as many processes as torchrun started; the student's folder.

    `tell` shows a line. Raises UserError for a folder that is taken, a model or cache that is missing or does not fit,
    or a damaged checkpoint; none of them changes what is there. Raises Stopped if a monitor or a signal ends the run.
    """
    check_trackers(recipe.trackers)
    for role in (recipe.student, recipe.fake_score):
        check_optimizer(role.optimizer)
    with process_group(recipe.compute) as ranks:
        ranks.samples(recipe.training.batch)
        # A base that is never trained need not be read in more precision than it computes in.
        dtype = getattr(torch, recipe.compute.dtype) if recipe.roles == "adapters" else torch.float32
        model = load_model(recipe.model, transformer=recipe.transformer, dtype=dtype, device=ranks.device)
        data, training = recipe.data, recipe.training
        interpolator = load_interpolator(model)
        cache = None if data.cache is None else open_cache(Path(data.cache), model)
        if cache is not None:  # the student makes clips of the size it was distilled on
            model.settings = replace(model.settings, **asdict(cache.geometry))
        else:  # refused now, before there is a folder
            world_of(model, data.world_level)
        check_half_rate(recipe, model.latent_shape()[1], interpolator)
        folder = RunFolder(output, resume=resume, recipe_text=recipe.to_yaml(), owner=ranks.is_main)
        check_newest(folder.checkpoints, training.updates)
        folder.lock()
        source = cache or encode_world(model, world_of(model, data.world_level), data.world_clips, progress=encoding)
        task = DistillTask(recipe, model, source, interpolator, ranks)
        monitor = Monitor(recipe, source, task.sampler(), ranks) if recipe.monitors.every else None
        if monitor is not None:
            monitor.find_references(folder.path, tell)
        with open_trackers(recipe, folder.path, tell, ranks) as trackers:
            watch = RunWatch(task, monitor, folder, trackers, tell)
            run(task, folder, _schedule(recipe), progress, watch, ranks)
    return output / "student"


def _schedule(recipe: Recipe) -> Schedule:
    training = recipe.training
    return Schedule(
        training.updates,
        checkpoint_every=training.checkpoint_every,
        keep_checkpoints=training.keep_checkpoints,
        sample_every=training.sample_every,
    )
