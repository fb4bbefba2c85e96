"""Training in miniature: a student that is a Gaussian, whose fake score is therefore known exactly."""

from __future__ import annotations

from collections.abc import Callable

import torch

from avd.types import LossTerm
from helpers.gaussian import GaussianVelocity


def descend(loss: Callable[..., LossTerm], updates: int = 400) -> tuple[float, float]:
    """Mean and spread at which a student a z + b ends, with the exact fake score of what it makes at each update.

    `loss(x, fake, sigma_B=, eps_BCFHW=)` is the term of its samples, whose levels are uniform in .02 to .98. The rate
    falls to 0, so that what is returned is where the expected gradient vanishes and not the last step's noise.
    """
    g = torch.Generator().manual_seed(0)
    a, b = torch.tensor(0.8, requires_grad=True), torch.tensor(-0.5, requires_grad=True)
    optimizer = torch.optim.Adam([a, b], lr=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, updates)
    for _ in range(updates):
        x = a * torch.randn(256, 4, 2, 4, 2, generator=g) + b
        sigma_B, eps = 0.02 + 0.96 * torch.rand(256, generator=g), torch.randn(x.shape, generator=g)
        term = loss(x, GaussianVelocity(b.item(), a.item()), sigma_B=sigma_B, eps_BCFHW=eps)
        optimizer.zero_grad()
        term.per_sample_B.mean().backward()
        optimizer.step()
        schedule.step()
    return b.item(), a.item()
