"""Solvers of a many-step model, from diffusers."""

from __future__ import annotations

from typing import Any, assert_never

from diffusers import UniPCMultistepScheduler

from avd.flow import TIMESTEPS
from avd.models.settings import SolverName


def make_solver(name: SolverName, shift: float) -> Any:
    """What `avd.sampling.teacher.sample_teacher` steps with; None is Euler on its own grid.

    "unipc" is UniPC (arXiv 2302.04867) of second order on flow noise levels.
    """
    if name == "euler":
        return None
    if name == "unipc":
        return UniPCMultistepScheduler(
            num_train_timesteps=TIMESTEPS, prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift
        )
    assert_never(name)
