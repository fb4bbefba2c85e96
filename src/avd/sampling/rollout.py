"""The few-step rollout, the one path a student is trained on and run with.

A student goes through stages of falling noise. At each it predicts the clean video, which is re-noised to the next
stage's level (the multistep consistency sampler, arXiv 2303.01469, Alg. 1; DMD2, arXiv 2405.14867, Sec. 4.5):

    x0_i    = x_i - sigma_i v(x_i, sigma_i)
    x_{i+1} = (1 - sigma_{i+1}) x0_i + sigma_{i+1} eps_i

Or it takes an Euler step, and the path is deterministic; the last step ends at 0, with the clean video (PCM, arXiv
2405.18407, Sec. 3). That is re-noising with the eps that the velocity implies, x_i + (1 - sigma_i) v_i:

    x_{i+1} = x_i + (sigma_{i+1} - sigma_i) v(x_i, sigma_i)

Which of them a student needs is a matter of what it was trained for; neither stands in for the other.

A stage with frame stride 2 works on every second latent frame, at its true temporal position; between strides a network
fills in the missing frames of x0 (AVD, Sec. "half frame rate"). A stage with space stride 2 works likewise on every
second row and column of each frame.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from avd.flow import add_noise, shift_sigma, subsample, x0_from_velocity
from avd.types import Conditions, Transition, Velocity

Renoise = Callable[[int], Tensor]
"""Standard normal noise, (B, C, F, H, W) at full rate and resolution, that stage i > 0 begins with."""


class Interpolate(Protocol):
    """Fills in what clean latents (B, C, F, H, W) were subsampled by: with `frames` they become (B, C, 2F - 1, H, W),
    with `space` H and W double."""

    def __call__(self, x_BCFHW: Tensor, *, frames: bool, space: bool) -> Tensor: ...


Strides = tuple[int, int]
"""One of frames, one of rows and columns."""
FULL: Strides = (1, 1)
"""All of a clip."""


@dataclass(frozen=True)
class Stage:
    sigma: float
    frame_stride: int = 1
    space_stride: int = 1

    @property
    def strides(self) -> Strides:
        return self.frame_stride, self.space_stride


def make_stages(
    sigmas: tuple[float, ...], half_rate_stages: int = 0, half_resolution_stages: int = 0
) -> tuple[Stage, ...]:
    """One stage per noise level, the first ones at every second frame, and at every second row and column.

    Raises ValueError unless at least the last stage is at full rate and resolution.
    """
    counts = {"half_rate_stages": half_rate_stages, "half_resolution_stages": half_resolution_stages}
    for name, count in counts.items():
        if not 0 <= count < len(sigmas):
            raise ValueError(f"{name} is {count}: it must be from 0 to {len(sigmas) - 1}")
    return tuple(
        Stage(sigma, 2 if i < half_rate_stages else 1, 2 if i < half_resolution_stages else 1)
        for i, sigma in enumerate(sigmas)
    )


def falling_levels(first: float, uniform: Sequence[float], shift: float) -> tuple[float, ...]:
    """`first` and a noise level for each number in [0, 1): that number, shifted, but at most the level before it.

    So a student is trained on rollouts of any levels, and may be sampled at any (rCM, arXiv 2510.08431).
    """
    levels = [first]
    for sigma in shift_sigma(torch.tensor(uniform, dtype=torch.float64), shift).tolist():
        levels.append(min(sigma, levels[-1]))
    return tuple(levels)


class Rollout:
    """Stages, how the student goes from one to the next, and the network that fills in what is missing between strides.

    Raises ValueError if a stage runs at half rate or resolution and there is no `interpolate`, or the transition is
    Euler's: its noise is the video's own, and what was left out has none.

    An expert trains on a part of the path: it exits at one of the stages `trained` (None: at any), and what a stage
    makes is the video at noise level `end`, by an Euler step; above 0 that is no clean video.
    """

    def __init__(
        self,
        stages: tuple[Stage, ...],
        interpolate: Interpolate | None = None,
        transition: Transition = "renoise",
        *,
        trained: range | None = None,
        end: float = 0.0,
    ) -> None:
        strided = any(stage.strides != FULL for stage in stages)
        if strided and transition == "euler":
            raise ValueError("stages at half rate or resolution are re-noised: use full stages only with Euler steps")
        if strided and interpolate is None:
            raise ValueError(
                "stages at half rate or resolution need an interpolator: give one, or use full stages only"
            )
        self.stages, self._interpolate, self._transition = stages, interpolate, transition
        self.trained, self.end = range(len(stages)) if trained is None else trained, end

    def at(self, sigmas: tuple[float, ...]) -> Rollout:
        """The same path at other noise levels, one per stage."""
        stages = tuple(replace(stage, sigma=sigma) for stage, sigma in zip(self.stages, sigmas, strict=True))
        return Rollout(stages, self._interpolate, self._transition, trained=self.trained, end=self.end)

    def __call__(self, student: Velocity, noise_BCFHW: Tensor, prompt: Conditions, renoise: Renoise) -> Tensor:
        """The clean video of the last stage, of the shape of the noise."""
        last = len(self.stages) - 1
        x = self.run_until(student, noise_BCFHW, prompt, renoise, last)
        return self.predict(student, x, prompt, last)

    def run_until(
        self, student: Velocity, noise_BCFHW: Tensor, prompt: Conditions, renoise: Renoise, stage: int
    ) -> Tensor:
        """The noisy video that `stage` begins with, at that stage's strides, without gradient.

        Stages from this one on are not run. Noise is taken for all of the clip whatever the strides, so that rollouts
        of all strides can share it. At half rate the number of frames must be odd, at half resolution both sides even.
        """
        frames, height, width = noise_BCFHW.shape[2:]
        if frames % 2 == 0 and self.stages[0].frame_stride > 1:
            raise ValueError(f"{frames} latent frames: half-rate stages need an odd number")
        if (height % 2 or width % 2) and self.stages[0].space_stride > 1:
            raise ValueError(f"latents of {height} x {width}: half-resolution stages need even sides")
        x = subsample(noise_BCFHW.float(), *self.stages[0].strides)
        for i in range(1, stage + 1):
            before, current = self.stages[i - 1], self.stages[i]
            if self._transition == "euler":
                x = x + (current.sigma - before.sigma) * self._velocity(student, x, before, prompt, gradient=False)
                continue
            x0 = self._predict(student, x, before, prompt, gradient=False)
            x0 = self._fill(x0, before.strides, current.strides, gradient=False)
            x = add_noise(x0, subsample(renoise(i), *current.strides), current.sigma)
        return x

    def predict(
        self, student: Velocity, x_BCFHW: Tensor, prompt: Conditions, stage: int, *, gradient: bool = False
    ) -> Tensor:
        """The video at level `end`, all of it, that `stage` makes of its noisy one; with `gradient`, it carries it."""
        exit_stage = self.stages[stage]
        made = self._predict(student, x_BCFHW, exit_stage, prompt, gradient, self.end)
        return self._fill(made, exit_stage.strides, FULL, gradient)

    def _predict(
        self, student: Velocity, x: Tensor, stage: Stage, prompt: Conditions, gradient: bool, end: float = 0.0
    ) -> Tensor:
        with torch.set_grad_enabled(gradient):
            return x0_from_velocity(x, self._velocity(student, x, stage, prompt, gradient), stage.sigma - end)

    def _velocity(self, student: Velocity, x: Tensor, stage: Stage, prompt: Conditions, gradient: bool) -> Tensor:
        with torch.set_grad_enabled(gradient):
            sigma_B = torch.full((len(x),), stage.sigma, device=x.device)
            frame, space = stage.strides
            return student(x, sigma_B, prompt, frame_stride=frame, space_stride=space)

    def _fill(self, x0: Tensor, strides: Strides, wanted: Strides, gradient: bool) -> Tensor:
        """Clean latents at `wanted` strides, from some at equal or larger ones."""
        frames, space = (given > less for given, less in zip(strides, wanted, strict=True))
        if not (frames or space):
            return x0
        assert self._interpolate is not None
        with torch.set_grad_enabled(gradient):
            return self._interpolate(x0, frames=frames, space=space)
