"""The many-step teacher: Euler, or a solver of diffusers, on the guided velocity."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from avd.flow import TIMESTEPS, GuidedVelocity, guide, integrate, many_step_sigmas
from avd.types import Conditions, Velocity


class Solver(Protocol):
    """The part of a diffusers scheduler that is needed here."""

    timesteps: Tensor

    def set_timesteps(self, num_inference_steps: int) -> None: ...

    def step(self, model_output: Tensor, timestep: Tensor, sample: Tensor, *, return_dict: bool) -> tuple[Tensor]: ...


def guided(
    network: Velocity,
    x: Tensor,
    sigma: Tensor,
    prompt: Conditions,
    unconditional: Conditions,
    scale: float,
    *,
    frame_stride: int = 1,
    space_stride: int = 1,
) -> GuidedVelocity:
    """Classifier-free guidance with both branches in one batch (two network calls' worth of work; one at scale 1).

    `unconditional`, of one row, is what it leads away from: the negative prompt, or the null prompt.
    """
    if scale == 1.0:
        velocity = network(x, sigma, prompt, frame_stride=frame_stride, space_stride=space_stride)
        return GuidedVelocity(velocity, velocity)
    away = unconditional.expand(len(prompt))
    both = network(
        torch.cat([x, x]),
        torch.cat([sigma, sigma]),
        Conditions.cat([prompt, away]),
        frame_stride=frame_stride,
        space_stride=space_stride,
    )
    cond, uncond = both.chunk(2)
    return GuidedVelocity(guide(cond, uncond, scale), cond)


@torch.no_grad()
def sample_teacher(
    network: Velocity,
    noise: Tensor,
    prompt: Conditions,
    unconditional: Conditions,
    *,
    steps: int,
    guidance: float,
    shift: float,
    solver: Solver | None = None,
) -> Tensor:
    """Latents (B, C, F, H, W) from `noise` of that shape: `steps` Euler steps on the shifted uniform grid.

    A `solver` steps on its own grid instead, with its own shift. `prompt` has a row per sample, `unconditional` one.
    """

    def velocity(x: Tensor, sigma: Tensor) -> Tensor:
        return guided(network, x, sigma, prompt, unconditional, guidance).velocity

    if solver is None:
        return integrate(velocity, noise, many_step_sigmas(steps, shift))
    return solve(velocity, noise, solver, steps)


@torch.no_grad()
def solve(velocity: Callable[[Tensor, Tensor], Tensor], noise: Tensor, solver: Solver, steps: int) -> Tensor:
    """As `flow.integrate`, by `steps` steps of a solver of diffusers. The state is kept in float32.

    Velocities are asked for at the solver's timesteps, which some round to whole numbers.
    """
    solver.set_timesteps(steps)
    x = noise.float()
    for timestep in solver.timesteps:
        sigma_B = torch.full((len(x),), timestep.item() / TIMESTEPS, device=x.device)
        (x,) = solver.step(velocity(x, sigma_B).float(), timestep, x, return_dict=False)
    return x
