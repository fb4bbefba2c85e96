"""Gaussian data, of which every velocity and every optimum is known in closed form."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor


@dataclass(frozen=True)
class GaussianVelocity:
    """The exact velocity of data ~ N(mean, std^2): E[eps - x0 | x_sigma] = -mean + a(sigma) (x - (1 - sigma) mean)."""

    mean: float
    std: float

    def __call__(self, x: Tensor, sigma_B: Tensor) -> Tensor:
        s = sigma_B.view(-1, 1, 1, 1, 1)
        return -self.mean + self.slope(s) * (x - (1 - s) * self.mean)

    def slope(self, s: Tensor) -> Tensor:
        """a(sigma)."""
        return (s - (1 - s) * self.std**2) / ((1 - s) ** 2 * self.std**2 + s**2)

    def clean_by_euler(self, x: Tensor, sigmas: Tensor) -> Tensor:
        """Where Euler's method on this velocity takes `x` along the falling `sigmas`: a product of linear maps."""
        start, factor = sigmas[0], torch.ones((), dtype=sigmas.dtype)
        for above, below in pairwise(sigmas):
            factor = factor * (1 - (above - below) * self.slope(above))
        return self.mean + factor * (x - (1 - start) * self.mean)

    def clean(self, x: Tensor, sigma_B: Tensor) -> Tensor:
        """Where the exact path takes `x` at sigma = 0."""
        return self.along(x, sigma_B, torch.zeros_like(sigma_B))

    def along(self, x: Tensor, above: Tensor | float, below: Tensor | float) -> Tensor:
        """Where the exact path through `x` at the level `above` is at the level `below`; numbers, or one per sample."""
        s, r = (torch.as_tensor(level, dtype=x.dtype).view(-1, 1, 1, 1, 1) for level in (above, below))
        return (1 - r) * self.mean + self.std_at(r) / self.std_at(s) * (x - (1 - s) * self.mean)

    def to_clean(self, x: Tensor, sigma_B: Tensor) -> Tensor:
        """The velocity that leads straight to `clean`, (x - clean) / sigma, and its limit at sigma = 0."""
        s = sigma_B.view(-1, 1, 1, 1, 1)
        variance, noisy = self.std**2, self.std_at(s)
        slope = (s * (1 + variance) - 2 * variance) / (noisy * (noisy + self.std))
        return -self.mean + slope * (x - (1 - s) * self.mean)

    def std_at(self, s: Tensor) -> Tensor:
        """Standard deviation of noised data, S(sigma)."""
        return ((1 - s) ** 2 * self.std**2 + s**2).sqrt()
