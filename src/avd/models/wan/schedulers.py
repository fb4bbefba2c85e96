"""Diffusers' schedulers for Wan: one to sample with, and the one a saved folder names."""

from __future__ import annotations

from typing import Any

from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

from avd.flow import TIMESTEPS
from avd.models.settings import Settings


def unipc(shift: float) -> Any:
    """UniPC (arXiv 2302.04867) of second order on flow noise levels, as Wan's pipelines come with."""
    return UniPCMultistepScheduler(
        num_train_timesteps=TIMESTEPS, prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift
    )


def scheduler_of(settings: Settings) -> Any:
    """The scheduler that stock diffusers should run a folder with.

    A student's re-noises its prediction at every step, which is the rollout; its noise levels are the student's own, so
    they must be given to `set_timesteps` and are not shifted.
    """
    if settings.student_timesteps is not None:
        return FlowMatchEulerDiscreteScheduler(TIMESTEPS, shift=1.0, stochastic_sampling=True)
    if settings.solver == "unipc":
        return unipc(settings.shift)
    return FlowMatchEulerDiscreteScheduler(TIMESTEPS, shift=settings.shift)
