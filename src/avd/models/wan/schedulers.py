"""The scheduler that a saved Wan folder names."""

from __future__ import annotations

from typing import Any

from diffusers import FlowMatchEulerDiscreteScheduler

from avd.flow import TIMESTEPS
from avd.models.settings import Settings
from avd.models.solvers import make_solver


def scheduler_of(settings: Settings) -> Any:
    """The scheduler that stock diffusers should run a folder with.

    A student's re-noises its prediction at every step or takes Euler steps, as its rollout does; its noise levels are
    the student's own, so they must be given to `set_timesteps` and are not shifted.
    """
    if settings.student_timesteps is not None:
        return FlowMatchEulerDiscreteScheduler(
            TIMESTEPS, shift=1.0, stochastic_sampling=settings.transition == "renoise"
        )
    solver = make_solver(settings.solver, settings.shift)
    return solver if solver is not None else FlowMatchEulerDiscreteScheduler(TIMESTEPS, shift=settings.shift)
