"""A distillation run from its recipe: model, data, folder and loop, wired."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import yaml

from avd.config import Recipe
from avd.interpolation import FrameInterpolator
from avd.models.settings import SolverName
from avd.models.wan import VideoModel
from avd.sampling.samplers import FewSteps, ManySteps, Sampler
from avd.training.checkpoint import check_newest
from avd.training.distill import DistillTask, check_half_rate
from avd.training.distributed import joined
from avd.training.folder import RECIPE_FILE, RunFolder
from avd.training.loop import Progress, Schedule, run
from avd.training.optimizers import check_optimizer
from avd.training.sources import Progress as EncodingProgress
from avd.training.sources import encode_world, open_cache, world_of
from avd.training.trackers import check_trackers, open_trackers
from avd.training.watch import RunWatch, Tell
from avd.types import UserError


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
    with joined(recipe.compute) as ranks:
        ranks.rows(recipe.training.batch)
        # A base that is never trained need not be read in more precision than it computes in.
        dtype = getattr(torch, recipe.compute.dtype) if recipe.roles == "adapters" else torch.float32
        model = VideoModel.load(recipe.model, transformer=recipe.transformer, dtype=dtype, device=ranks.device)
        data, training = recipe.data, recipe.training
        interpolator = load_interpolator(model)
        cache = None if data.cache is None else open_cache(Path(data.cache), model)
        if cache is not None:  # the student makes clips of the size it was distilled on
            model.settings = replace(model.settings, **asdict(cache.geometry))
        else:  # refused now, before there is a folder
            world_of(model, data.world_level)
        check_half_rate(recipe, model.latent_shape()[1], interpolator)
        folder = RunFolder(output, resume=resume, recipe_text=recipe.to_yaml(), owner=ranks.first)
        check_newest(folder.checkpoints, training.updates)
        folder.claim()
        source = cache or encode_world(model, world_of(model, data.world_level), data.world_clips, progress=encoding)
        task = DistillTask(recipe, model, source, interpolator, ranks)
        if task.monitor is not None:
            task.monitor.find_references(folder.path, tell)
        with open_trackers(recipe, folder.path, tell, ranks) as trackers:
            watch = RunWatch(task, folder, trackers, tell)
            run(task, folder, _schedule(recipe), progress, watch, ranks)
    return output / "student"


def _schedule(recipe: Recipe) -> Schedule:
    training = recipe.training
    return Schedule(
        training.updates,
        checkpoint_every=training.checkpoint_every,
        keep_checkpoints=training.keep_checkpoints,
        validate_every=recipe.monitors.every,
        sample_every=training.sample_every,
    )


def load_interpolator(model: VideoModel) -> FrameInterpolator | None:
    """The interpolator shipped in the model's folder, if there is one."""
    folder = None if model.folder is None else model.folder / "interpolator"
    return FrameInterpolator.load(folder) if folder is not None and folder.is_dir() else None


def make_sampler(
    model: VideoModel,
    *,
    half_rate: bool | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    solver: SolverName | None = None,
) -> Sampler:
    """How a model is run: a student by its rollout, any other model by many guided steps.

    None is the model's own setting. Raises UserError for half rate without an interpolator, or with many steps.
    """
    settings = model.settings
    if settings.student_timesteps is None or steps is not None:
        if half_rate:
            raise UserError("half rate is for students: distil one first, or leave --half-rate out")
        scale = settings.guidance if guidance is None else guidance
        return ManySteps(model, settings.steps if steps is None else steps, scale, solver)
    if guidance is not None:
        raise UserError("a student has its guidance distilled into it: leave --guidance out")
    if solver is not None:
        raise UserError("a student has its own steps and solves nothing: leave --solver out")
    stages = settings.half_rate_stages
    if half_rate is not None:
        stages = (stages or len(settings.student_timesteps) // 2) * half_rate
    if half_rate and not stages:
        raise UserError("a student of one step has none to run at half rate: leave --half-rate out")
    frames = model.latent_shape()[1]
    if stages and frames % 2 == 0:
        raise UserError(
            f"half rate needs an odd number of latent frames, this model's clips have {frames}: use --full-rate"
        )
    interpolator = load_interpolator(model) if stages else None
    if stages and interpolator is None:
        raise UserError(f"{model.folder} holds no interpolator/, which half rate needs: leave --half-rate out")
    return FewSteps(model, settings.student_timesteps, stages, interpolator)


def recipe_of(name: str) -> dict[str, Any] | None:
    """The recipe of the run that a student's folder lies in, if it lies in one."""
    path = Path(name).parent / RECIPE_FILE
    return yaml.safe_load(path.read_text()) if Path(name).is_dir() and path.exists() else None
