"""The online ("fake") score's own loss: denoise what the student makes (DMD, Eq. 6), as flow matching.

Of a clean sample x, noised with eps to sigma, the velocity to learn is eps - x. Of an expert's sample x_p at noise
level p, which is noised further by the kernel of `flow.renoise`, x_sigma = k x_p + b eps, it is (Phased DMD, arXiv
2510.27684)

    v = (sigma + (1 - sigma) p^2 / (1 - p)^2) / b  eps  -  x_p / (1 - p)        k = (1 - sigma) / (1 - p)
                                                                                b^2 = sigma^2 - k^2 p^2
whose mean given x_sigma is that of eps - x0, where eps - x_p would be biased. p = 0 is the clean sample's. Near p the
target is mostly noise, of size sigma / b, so samples count by min(1, 10 (b / sigma)^2), which leaves the minimum as it
is.

Here is also what the terms that compare it with the teacher have in common: noise levels, networks, the normalisation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pydantic import Field, model_validator
from torch import Tensor

from avd.flow import GuidedVelocity, per_sample, renoise, shift_sigma
from avd.objectives.source import Random
from avd.objectives.term import GuidedSection, Learned, Sample
from avd.types import LossTerm

Score = Callable[[Tensor, Tensor], Tensor]
"""Velocity of (x_BCFHW, sigma_B), with prompts already bound."""
GuidedScore = Callable[[Tensor, Tensor], GuidedVelocity]
"""The same with guidance bound."""

_SMALLEST_NORM = 1e-6


def distance_to_real(x_BCFHW: Tensor, real_BCFHW: Tensor) -> Tensor:
    """mean|x - x0_real| over all of a sample's values, by which its gradient is divided (DMD, Eq. 8): shape (B,)."""
    return (x_BCFHW - real_BCFHW).abs().flatten(1).mean(1).clamp_min(_SMALLEST_NORM)


def fake_score_denoising(
    x_BCFHW: Tensor,
    *,
    fake_score: Score,
    sigma_B: Tensor,
    eps_BCFHW: Tensor,
    end: float = 0.0,
) -> LossTerm:
    """mean (v_fake(x_sigma, sigma) - v)^2 per sample; gradient reaches only the fake score. `end` is the noise level p
    of the samples, `sigma_B` are above it."""
    x = x_BCFHW.detach()
    velocity = fake_score(renoise(x, end, sigma_B, eps_BCFHW), sigma_B)
    loss_B = (velocity - _target(x, eps_BCFHW, sigma_B, end)).square().flatten(1).mean(1)
    return LossTerm("fake_score", (_RELIABLE * (_fresh(sigma_B, end) / sigma_B) ** 2).clamp_max(1) * loss_B)


_RELIABLE = 10.0
"""Samples count fully down to b / sigma = 1 / sqrt(10); see the module."""


def _fresh(sigma_B: Tensor, end: float) -> Tensor:
    """b, the fresh noise of x_sigma."""
    return (sigma_B**2 - ((1 - sigma_B) / (1 - end) * end) ** 2).sqrt()


def _target(x: Tensor, eps: Tensor, sigma_B: Tensor, end: float) -> Tensor:
    """The velocity to learn."""
    noise_B = (sigma_B + (1 - sigma_B) * (end / (1 - end)) ** 2) / _fresh(sigma_B, end)
    return per_sample(noise_B, x) * eps - x / (1 - end)


@dataclass(frozen=True)
class ScoreLevels:
    """Noise levels at which scores are compared and the fake score learns: uniform in a range, then shifted."""

    low: float
    high: float
    shift: float

    def draw(self, random: Random, *what: int | str, end: float = 0.0) -> Tensor:
        """Levels in (`end`, 1], (B,): those between 0 and 1, moved to between the samples' own level and 1."""
        uniform = random.uniform(*what, "sigma")
        return end + (1 - end) * shift_sigma(self.low + (self.high - self.low) * uniform, self.shift)


class ScoreSection(GuidedSection):
    """Values of a term that compares the fake score with the teacher."""

    sigma_min: float = Field(0.02, gt=0, lt=1)
    sigma_max: float = Field(0.98, gt=0, le=1)
    shift: float = Field(1.0, gt=0, le=1000)
    """Shift of the uniformly drawn noise levels at which the two scores are compared."""

    @model_validator(mode="after")
    def _check(self) -> ScoreSection:
        if self.sigma_min >= self.sigma_max:
            raise ValueError(f"sigma_min must be below sigma_max ({self.sigma_max})")
        return self

    @property
    def levels(self) -> ScoreLevels:
        return ScoreLevels(self.sigma_min, self.sigma_max, self.shift)


@dataclass(frozen=True)
class FakeScoreLoss:
    """See `objectives.term.AuxiliaryLoss`."""

    levels: ScoreLevels

    def __call__(self, sample: Sample, network: Score, update: int) -> LossTerm:
        x, what = sample.output_BCFHW, ("fake score", update)
        return fake_score_denoising(
            x,
            fake_score=network,
            sigma_B=self.levels.draw(sample.random, *what, end=sample.end),
            eps_BCFHW=sample.random.normal(*what, "noise", shape=x.shape[1:]),
            end=sample.end,
        )


def fake_score(levels: ScoreLevels) -> Learned:
    """The auxiliary of every term that compares scores."""
    return Learned("fake_score", FakeScoreLoss(levels))
