"""Distribution matching: pull the student's samples from where the fake score sees them to where the teacher does.

AVD Eq. 4; DMD (arXiv 2311.18828), Eq. 7 and 8. For a sample x of the student, noised to x_sigma:

    g = (x0_fake(x_sigma) - x0_real(x_sigma)) / mean|x - x0_real|        mean over all of a sample's values
    loss = 1/2 mean (x - stop_gradient(x - g))^2                         so that d loss / d x = g / (number of values)

In exact arithmetic g is the difference of the two scores times sigma^2 / (1 - sigma), per sample rescaled: the
normalisation makes all noise levels weigh about the same.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from avd.flow import add_noise, x0_from_velocity
from avd.types import LossTerm

Score = Callable[[Tensor, Tensor], Tensor]
"""Velocity of (x_BCFHW, sigma_B), with prompts and guidance already bound."""

_SMALLEST_NORM = 1e-6


def distribution_matching(
    x_BCFHW: Tensor, *, teacher: Score, fake_score: Score, sigma_B: Tensor, eps_BCFHW: Tensor
) -> LossTerm:
    """The loss of samples `x_BCFHW`; gradient reaches only them.

    `teacher` is the guided velocity of the frozen teacher, `fake_score` that of the online score (no guidance); both
    are called once, without gradient, on the samples noised with `eps_BCFHW` to `sigma_B` in (0, 1].
    """
    with torch.no_grad():
        x = x_BCFHW.float()
        noisy = add_noise(x, eps_BCFHW, sigma_B)
        real = x0_from_velocity(noisy, teacher(noisy, sigma_B), sigma_B)
        fake = x0_from_velocity(noisy, fake_score(noisy, sigma_B), sigma_B)
        norm_B = (x - real).abs().flatten(1).mean(1).clamp_min(_SMALLEST_NORM)
        gradient = (fake - real) / norm_B.view(-1, 1, 1, 1, 1)
        target = x - gradient
    per_sample = 0.5 * (x_BCFHW.float() - target).square().flatten(1).mean(1)
    return LossTerm("distribution_matching", per_sample, {"dm_norm": norm_B.mean().item()})
