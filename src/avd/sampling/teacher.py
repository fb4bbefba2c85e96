"""The many-step teacher: Euler on the guided velocity."""

from __future__ import annotations

import torch
from torch import Tensor

from avd.flow import guide, integrate, many_step_sigmas
from avd.types import Velocity


def guided(network: Velocity, x: Tensor, sigma: Tensor, prompt: Tensor, null_prompt: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance with both branches in one batch (two network calls' worth of work; one at scale 1)."""
    if scale == 1.0:
        return network(x, sigma, prompt)
    null = null_prompt.expand_as(prompt)
    both = network(torch.cat([x, x]), torch.cat([sigma, sigma]), torch.cat([prompt, null]))
    cond, uncond = both.chunk(2)
    return guide(cond, uncond, scale)


@torch.no_grad()
def sample_teacher(
    network: Velocity, noise: Tensor, prompt: Tensor, null_prompt: Tensor, *, steps: int, guidance: float, shift: float
) -> Tensor:
    """Latents (B, C, F, H, W) from `noise` of that shape: `steps` Euler steps on the shifted uniform grid.

    `prompt` is (B, L, D), `null_prompt` (1, L, D).
    """
    return integrate(
        lambda x, sigma: guided(network, x, sigma, prompt, null_prompt, guidance), noise, many_step_sigmas(steps, shift)
    )
