"""The online ("fake") score's own loss: denoise what the student makes (DMD, Eq. 6), as flow matching."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from avd.flow import add_noise, shift_sigma, velocity_of
from avd.objectives.source import Random
from avd.objectives.term import Learned, Sample
from avd.types import LossTerm


def fake_score_denoising(
    x_BCFHW: Tensor, *, fake_score: Callable[[Tensor, Tensor], Tensor], sigma_B: Tensor, eps_BCFHW: Tensor
) -> LossTerm:
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


@dataclass(frozen=True)
class FakeScoreLoss:
    """See `objectives.term.AuxiliaryLoss`."""

    levels: ScoreLevels

    def __call__(self, sample: Sample, network: Callable[[Tensor, Tensor], Tensor], update: int) -> LossTerm:
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
