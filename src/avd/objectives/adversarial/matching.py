"""Adversarial matching as a term: its values, the heads that are its discriminator, and what both are called with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated

import torch
from pydantic import Field, model_validator
from torch import Tensor

from avd.objectives.adversarial.losses import Form, discriminator_loss, generator_loss
from avd.objectives.fake_score import ScoreLevels
from avd.objectives.passes import Pass
from avd.objectives.source import RolloutSource
from avd.objectives.term import Heads, Sample, Setting, Stateless, Term, TermSection
from avd.types import LossTerm


class AdversarialRecipe(TermSection):
    """Adversarial matching of real clips; weight 0 leaves it out, and its heads."""

    form: Form = "softplus"
    depths: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field((0.5, 0.75, 1.0), min_length=1, max_length=64)
    """Where the teacher's blocks have a head, as shares of its depth."""
    width: int = Field(128, ge=1, le=65_536)
    """Hidden units of each head."""
    sigma_min: float = Field(0.02, ge=0, lt=1)
    sigma_max: float = Field(0.98, gt=0, lt=1)
    shift: float = Field(1.0, gt=0, le=1000)
    """Shift of the uniformly drawn noise levels at which clips are distinguished."""
    r1: float = Field(0.0, ge=0, le=1e6)
    """Weight of the discriminator's squared slope at real clips; 0 leaves it out."""
    r1_step: float = Field(0.1, gt=0, le=1)
    """How far it is moved to find the slope."""

    @model_validator(mode="after")
    def _check(self) -> AdversarialRecipe:
        if self.sigma_min >= self.sigma_max:
            raise ValueError(f"sigma_min must be below sigma_max ({self.sigma_max})")
        if not all(a < b for a, b in pairwise(self.depths)):
            raise ValueError(f"depths are {list(self.depths)}: they must rise")
        return self

    @property
    def levels(self) -> ScoreLevels:
        return ScoreLevels(self.sigma_min, self.sigma_max, self.shift)

    @property
    def heads(self) -> Heads:
        loss = DiscriminatorLoss(self.levels, self.form, self.r1, self.r1_step)
        return Heads("discriminator", loss, self.depths, self.width, inputs=3 if self.r1 else 2)


@dataclass(frozen=True)
class DiscriminatorLoss:
    """See `objectives.term.AuxiliaryLoss`."""

    levels: ScoreLevels
    form: Form
    r1: float
    r1_step: float

    def __call__(self, sample: Sample, network: Callable[..., Tensor], update: int) -> LossTerm:
        x, what = sample.output_BCFHW, ("discriminator", update)
        assert sample.x0_BCFHW is not None, "a term pairs its rollouts with real clips"

        def discriminate(noisy: Tensor, sigma: Tensor) -> Tensor:
            with torch.no_grad():
                features = sample.networks.features("discriminator", noisy, sigma)
            return network(features)

        return discriminator_loss(
            x,
            sample.x0_BCFHW,
            discriminate=discriminate,
            sigma_B=self.levels.draw(sample.random, *what),
            noise=lambda name: sample.random.normal(*what, name, shape=x.shape[1:]),
            form=self.form,
            r1=self.r1,
            r1_step=self.r1_step,
        )


def _make(section: AdversarialRecipe, setting: Setting) -> Stateless:
    def loss(sample: Sample) -> LossTerm:
        x, networks = sample.output_BCFHW, sample.networks

        def discriminate(noisy: Tensor, sigma: Tensor) -> Tensor:
            return networks.judge("discriminator", networks.features("discriminator", noisy, sigma))

        return generator_loss(
            x,
            discriminate=discriminate,
            sigma_B=section.levels.draw(sample.random, "adversarial"),
            eps_BCFHW=sample.random.normal("adversarial", "noise", shape=x.shape[1:]),
            form=section.form,
        )

    return Stateless(loss)


TERM = Term(
    name="adversarial",
    about="how well heads on the teacher's features tell the student's samples from real clips of the same prompts",
    paper="DMD2, arXiv 2405.14867",
    section=AdversarialRecipe,
    source=lambda section: RolloutSource(),
    auxiliaries=lambda section: (section.heads,),
    passes=lambda section: (
        Pass("features of the samples, to their input", "teacher", section.depths[-1], to_input=True),
    ),
    make=_make,
    paired=lambda section: True,
)
