"""The online ("fake") score's own loss: denoise what the student makes (DMD, Eq. 6), as flow matching.

And what the terms that compare it with the teacher have in common: noise levels, networks, the normalisation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pydantic import Field, model_validator
from torch import Tensor

from avd.flow import GuidedVelocity, add_noise, shift_sigma, velocity_of
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


def fake_score_denoising(x_BCFHW: Tensor, *, fake_score: Score, sigma_B: Tensor, eps_BCFHW: Tensor) -> LossTerm:
    """mean (v_fake(x_sigma, sigma) - (eps - x))^2 per sample; gradient reaches only the fake score."""
    x = x_BCFHW.detach()
    velocity = fake_score(add_noise(x, eps_BCFHW, sigma_B), sigma_B)
    per_sample = (velocity - velocity_of(x, eps_BCFHW)).square().flatten(1).mean(1)
    return LossTerm("fake_score", per_sample)


@dataclass(frozen=True)
class ScoreLevels:
    """Noise levels at which scores are compared and the fake score learns: uniform in a range, then shifted."""

    low: float
    high: float
    shift: float

    def draw(self, random: Random, *what: int | str) -> Tensor:
        """Levels in (0, 1], (B,)."""
        uniform = random.uniform(*what, "sigma")
        return shift_sigma(self.low + (self.high - self.low) * uniform, self.shift)


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
            sigma_B=self.levels.draw(sample.random, *what),
            eps_BCFHW=sample.random.normal(*what, "noise", shape=x.shape[1:]),
        )


def fake_score(levels: ScoreLevels) -> Learned:
    """The auxiliary of every term that compares scores."""
    return Learned("fake_score", FakeScoreLoss(levels))
