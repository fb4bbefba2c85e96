"""The flow convention, stated once.

    sigma in [0, 1], noise at 1
    x_sigma = (1 - sigma) x0 + sigma eps          eps ~ N(0, I)
    v       = d x_sigma / d sigma = eps - x0
    x0      = x_sigma - sigma v
    eps     = x_sigma + (1 - sigma) v

This is rectified flow (Liu et al. 2022, arXiv 2209.03003) as video models use it; a network's "timestep" is 1000 sigma.
Everything here computes in float32 (or float64 if given), whatever the network's precision.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

TIMESTEPS = 1000
"""Timestep of sigma = 1."""


def per_sample(sigma: Tensor | float, like: Tensor) -> Tensor:
    """`sigma`, a number or of shape (B,), shaped to broadcast over `like` of shape (B, ...), in at least float32."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    sigma = torch.as_tensor(sigma, dtype=dtype, device=like.device)
    return sigma.reshape(-1, *[1] * (like.ndim - 1))


def add_noise(x0: Tensor, eps: Tensor, sigma: Tensor | float) -> Tensor:
    """x_sigma from clean latents and noise."""
    s = per_sample(sigma, x0)
    return (1 - s) * x0 + s * eps


def renoise(x_p: Tensor, p: Tensor | float, q: Tensor | float, eps: Tensor) -> Tensor:
    """x_q from x_p by fresh noise, for levels p <= q with p < 1: the kernel p -> q of the forward process.

        x_q = k x_p + sqrt(q^2 - k^2 p^2) eps        k = (1 - q) / (1 - p)

    As x_p = (1 - p) x0 + p eps', this has the distribution of (1 - q) x0 + q eps, given x0 (Phased DMD, arXiv
    2510.27684). p = 0 is `add_noise`, and p = q leaves x_p as it is. Numbers, or one per sample, of shape (B,).
    """
    from_, to = per_sample(p, x_p), per_sample(q, x_p)
    keep = (1 - to) / (1 - from_)
    return keep * x_p + (to**2 - (keep * from_) ** 2).clamp_min(0).sqrt() * eps


def subsample(x_BCFHW: Tensor, frame_stride: int = 1, space_stride: int = 1) -> Tensor:
    """Every `frame_stride`-th frame and of these every `space_stride`-th row and column, from the first on; a view.

    It commutes with `add_noise`, and of independent unit noise it leaves independent unit noise: a noise level means
    the same at every stride, and rollouts of different strides share their noise. An average over squares of side r
    does neither: it shrinks noise to 1 / r and latents by less, so each level would ask for another one.
    """
    return x_BCFHW[:, :, ::frame_stride, ::space_stride, ::space_stride]


def denoise(x_q: Tensor, v: Tensor, q: Tensor | float, p: Tensor | float) -> Tensor:
    """The mean of x_p given x_q, p <= q and p < 1, by the velocity v at x_q; p = 0 is `x0_from_velocity`.

    With the kernel p -> q of `renoise`, x_q = k x_p + b e, the mean of e is (b / q) times that of eps, so

        x_p = (x_q - b^2 / q (x_q + (1 - q) v)) / k
            = (1 - p + (1 - q) p^2 / ((1 - p) q)) x_q - b^2 (1 - p) / q v
    """
    to, from_ = per_sample(q, x_q), per_sample(p, x_q)
    keep = (1 - to) / (1 - from_)
    return (1 - from_ + keep * from_**2 / to) * x_q - (to - (keep * from_) ** 2 / to) * (1 - from_) * v


def velocity_of(x0: Tensor, eps: Tensor) -> Tensor:
    """v = eps - x0."""
    return eps.to(torch.promote_types(eps.dtype, torch.float32)) - x0


def x0_from_velocity(x_sigma: Tensor, v: Tensor, sigma: Tensor | float) -> Tensor:
    """x0 = x_sigma - sigma v."""
    return x_sigma - per_sample(sigma, x_sigma) * v


def guide(cond: Tensor, uncond: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance in the usual convention: uncond + scale (cond - uncond); 1 is no guidance.

    Some code counts from the conditional branch, cond + w (cond - uncond), which is `scale` = 1 + w here.
    """
    return uncond + scale * (cond - uncond)


class GuidedVelocity(NamedTuple):
    """What a guided network answers, and what it would have answered without guidance: its conditional branch."""

    velocity: Tensor
    unguided: Tensor
    """The same tensor at scale 1."""


def shift_sigma(sigma: Tensor, shift: float) -> Tensor:
    """Move noise levels up by `shift` >= 1 (SD3, arXiv 2403.03206, Eq. 23): s sigma / (1 + (s - 1) sigma).

    0 and 1 stay where they are; `shift` = 1 changes nothing; shifting by a then by b is shifting by a b.
    """
    if shift <= 0:
        raise ValueError(f"timestep shift is {shift}: it must be positive")
    return shift * sigma / (1 + (shift - 1) * sigma)


def many_step_sigmas(steps: int, shift: float) -> Tensor:
    """The `steps` + 1 noise levels of a many-step sampler, from 1 down to 0: a uniform grid, shifted. float64."""
    if steps < 1:
        raise ValueError(f"number of sampling steps is {steps}: it must be at least 1")
    return shift_sigma(torch.linspace(1.0, 0.0, steps + 1, dtype=torch.float64), shift)


def few_step_sigmas(timesteps: tuple[float, ...]) -> tuple[float, ...]:
    """Noise levels of a few-step student from its timesteps (of 1000), which must fall and lie in (0, 1000]."""
    ordered = all(a > b for a, b in pairwise(timesteps))
    if not timesteps or not ordered or not 0 < timesteps[-1] <= timesteps[0] <= TIMESTEPS:
        raise ValueError(f"student timesteps are {list(timesteps)}: they must fall strictly within (0, {TIMESTEPS}]")
    return tuple(t / TIMESTEPS for t in timesteps)


@torch.no_grad()
def integrate(velocity: Callable[[Tensor, Tensor], Tensor], noise: Tensor, sigmas: Tensor) -> Tensor:
    """Solve dx/dsigma = v(x, sigma) by Euler's method along `sigmas` (falling), from `noise` at the first.

    `velocity(x, sigma_B)` is called once per step. The state is kept in float32.
    """
    x = noise.float()
    for sigma, below in zip(sigmas[:-1].tolist(), sigmas[1:].tolist(), strict=True):
        v = velocity(x, torch.full((x.shape[0],), sigma, device=x.device))
        x = x + (below - sigma) * v.float()
    return x
