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
    steps: int | None = None,
    guidance: float | None = None,
    solver: SolverName | None = None,
    negative_prompt: str | None = None,
) -> Sampler:
    """How a model is run: a student by its rollout, any other model by many guided steps.

    None is the model's own setting. Raises UserError for half rate without an interpolator, or with many
    or Euler steps.
    """
    settings = model.settings
    if settings.student_timesteps is None or steps is not None:
        if half_rate:
            raise UserError("half rate is for students: distil one first, or leave --half-rate out")
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
    stages = settings.half_rate_stages
    if half_rate is not None:
        stages = (stages or len(settings.student_timesteps) // 2) * half_rate
    if half_rate and not stages:
        raise UserError("a student with one step has none to run at half rate: leave --half-rate out")
    if stages and settings.transition == "euler":
        raise UserError("this student takes Euler steps, which are at full rate only: leave --half-rate out")
    frames = model.latent_shape()[1]
    if stages and frames % 2 == 0:
        raise UserError(
            f"half rate needs an odd number of latent frames, this model's clips have {frames}: use --full-rate"
        )
    interpolator = load_interpolator(model) if stages else None
    if stages and interpolator is None:
        raise UserError(f"{model.folder} holds no interpolator/, which half rate needs: leave --half-rate out")
    return FewSteps(model, settings.student_timesteps, stages, interpolator, settings.transition)
