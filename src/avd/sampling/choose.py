"""How a model is run: a student by its few-step rollout, any other model by many guided steps."""

from __future__ import annotations

from pathlib import Path

from avd.models.interpolator import FrameInterpolator
from avd.models.settings import SolverName
from avd.sampling.samplers import FewSteps, ManySteps, SampledModel, Sampler
from avd.types import UserError

_MOST_STEPS, _MOST_GUIDANCE = 10_000, 1000


def load_interpolator(model: SampledModel) -> FrameInterpolator | None:
    """The interpolator shipped in the model's folder, if there is one."""
    folder = find_interpolator(model)
    return None if folder is None else FrameInterpolator.load(folder)


def find_interpolator(model: SampledModel) -> Path | None:
    """The folder of that interpolator, if there is one."""
    folder = None if model.folder is None else model.folder / "interpolator"
    return folder if folder is not None and folder.is_dir() else None


def make_sampler(
    model: SampledModel,
    *,
    half_rate: bool | None = None,
    half_resolution: bool | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    solver: SolverName | None = None,
    negative_prompt: str | None = None,
) -> Sampler:
    """How a model is run: a student by its rollout, any other model by many guided steps.

    None is the model's own setting. Raises UserError for half rate or half resolution without an interpolator that
    fills it in, with many or Euler steps, and for clips that do not halve.
    """
    settings = model.settings
    if settings.end_timestep:
        raise UserError(
            f"{model.folder} is an expert of high noise by itself, which ends at timestep {settings.end_timestep:g}: "
            "distil the one of low noise with experts.high naming it, and use that run's student"
        )
    if settings.student_timesteps is None or steps is not None:
        if half_rate or half_resolution:
            which = "rate" if half_rate else "resolution"
            raise UserError(f"half {which} is for students: distil one first, or leave --half-{which} out")
        if guidance is not None and not abs(guidance) <= _MOST_GUIDANCE:  # nan neither
            raise UserError(f"guidance is {guidance:g}: it must be a number from -{_MOST_GUIDANCE} to {_MOST_GUIDANCE}")
        if steps is not None and steps > _MOST_STEPS:
            raise UserError(f"steps is {steps}: choose at most {_MOST_STEPS}")
        scale = settings.guidance if guidance is None else guidance
        return ManySteps(model, settings.steps if steps is None else steps, scale, solver, negative_prompt)
    if guidance is not None:
        raise UserError("a student has its guidance distilled into it: leave --guidance out")
    if solver is not None:
        raise UserError("a student has its own steps and uses no solver: leave --solver out")
    if negative_prompt is not None:
        raise UserError("a student has its negative prompt distilled into it: leave --negative-prompt out")
    timesteps = settings.student_timesteps
    rate = _count_stages("rate", settings.half_rate_stages, half_rate, len(timesteps))
    resolution = _count_stages("resolution", settings.half_resolution_stages, half_resolution, len(timesteps))
    interpolator = _needed_interpolator(model, rate, resolution)
    return FewSteps(model, timesteps, rate, interpolator, settings.transition, resolution)


def _count_stages(which: str, own: int, wanted: bool | None, steps: int) -> int:
    """Stages at half rate or resolution: a student's `own`, or, if wanted of one that has none, half of its steps."""
    count = own if wanted is None else (own or steps // 2) * wanted
    if wanted and not count:
        raise UserError(f"a student with one step has none to run at half {which}: leave --half-{which} out")
    return count


def _needed_interpolator(model: SampledModel, rate: int, resolution: int) -> FrameInterpolator | None:
    """Raises UserError for clips that do not halve, or if there is none that fills them in."""
    if not (rate or resolution):
        return None
    which = "rate" if rate else "resolution"
    if model.settings.transition == "euler":
        raise UserError(f"this student takes Euler steps, which are at full {which} only: leave --half-{which} out")
    frames = model.latent_shape()[1]
    if rate and frames % 2 == 0:
        raise UserError(
            f"half rate needs an odd number of latent frames, this model's clips have {frames}: use --full-rate"
        )
    if resolution:
        model.sizes.check_half_resolution(model.settings.height)
    interpolator = load_interpolator(model)
    if interpolator is None:
        raise UserError(f"{model.folder} holds no interpolator/, which half {which} needs: leave --half-{which} out")
    if resolution:
        interpolator.config.check_space()
    return interpolator
