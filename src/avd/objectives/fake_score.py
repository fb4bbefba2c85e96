"""The online ("fake") score's own loss: denoise what the student makes (DMD, Eq. 6), as flow matching."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from avd.flow import add_noise, velocity_of
from avd.types import LossTerm


def fake_score_denoising(
    x_BCFHW: Tensor, *, fake_score: Callable[[Tensor, Tensor], Tensor], sigma_B: Tensor, eps_BCFHW: Tensor
) -> LossTerm:
    """mean (v_fake(x_sigma, sigma) - (eps - x))^2 per sample; gradient reaches only the fake score."""
    x = x_BCFHW.detach()
    velocity = fake_score(add_noise(x, eps_BCFHW, sigma_B), sigma_B)
    per_sample = (velocity - velocity_of(x, eps_BCFHW)).square().flatten(1).mean(1)
    return LossTerm("fake_score", per_sample)
