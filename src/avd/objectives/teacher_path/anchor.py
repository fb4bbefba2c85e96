"""An anchor for the student's first step: where the teacher's own first steps lead (DP-DMD, arXiv 2602.03139).

What a clip is about is settled at high noise, where distribution matching drops what the teacher would also have made.
There the student learns from the teacher's path instead: from pure noise eps, the guided teacher takes a few Euler
steps of its grid, to z at the level s, and the student's first velocity is to lead there in one:

    loss = mean (v(eps, 1) - (eps - z) / (1 - s))^2          per sample, over all of its values
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from pydantic import Field, model_validator
from torch import Tensor

from avd.flow import TIMESTEPS, integrate, many_step_sigmas
from avd.objectives.consistency import Predict
from avd.objectives.passes import Pass, Place
from avd.objectives.source import DataSource, Levels, Random, Stages
from avd.objectives.term import GuidedSection, Sample, Setting, Stateless, Term, TrainedStages
from avd.types import LossTerm


def anchor(velocity_BCFHW: Tensor, *, eps_BCFHW: Tensor, teacher: Predict, sigmas: Tensor) -> LossTerm:
    """The loss of the student's velocity at pure noise `eps_BCFHW`; gradient reaches only the velocity.

    `sigmas`, falling from 1, are the teacher's levels; it is called at each but the last, without gradient.
    """
    reached = integrate(teacher, eps_BCFHW, sigmas)
    straight = (eps_BCFHW - reached) / (sigmas[0] - sigmas[-1]).item()
    return LossTerm("anchor", (velocity_BCFHW - straight).square().flatten(1).mean(1))


@dataclass(frozen=True)
class AtPureNoise:
    """The level 1, where nothing of the data is left; see `objectives.source.Law`."""

    name: str = "anchor"
    place: Place = "full"

    def draw(self, random: Random, stages: Stages) -> Levels:
        index_B = random.integers(self.name, "level", high=1)
        return Levels(torch.ones(len(index_B), device=index_B.device), index_B)

    def teaches(self, stages: Stages) -> frozenset[int]:
        return frozenset(i for i in stages.full if stages.sigmas[i] == 1)


class AnchorRecipe(GuidedSection):
    """The teacher's first steps as the target of the student's; weight 0 leaves it out."""

    steps: int = Field(5, ge=1, le=1000)
    """Steps of the teacher."""
    grid: int = Field(30, ge=1, le=1000)
    """Steps of its grid, of which these are the first."""
    shift: float = Field(5.0, ge=1e-3, le=1000)
    """Timestep shift of the grid."""

    @model_validator(mode="after")
    def _check(self) -> AnchorRecipe:
        if self.steps > self.grid:
            raise ValueError(f"steps must be at most grid ({self.grid})")
        return self

    @property
    def sigmas(self) -> Tensor:
        """The teacher's levels, from 1 to the anchor's."""
        return many_step_sigmas(self.grid, self.shift)[: self.steps + 1]


def _check(section: AnchorRecipe, stages: TrainedStages) -> None:
    if stages.timesteps[0] != TIMESTEPS:
        raise ValueError(
            f"it teaches the student at timestep {TIMESTEPS}, and the first one is {stages.timesteps[0]:g}: set "
            f"rollout.timesteps to begin with {TIMESTEPS}, or weight to 0"
        )


def _make(section: AnchorRecipe, setting: Setting) -> Stateless:
    def loss(sample: Sample) -> LossTerm:
        networks = sample.networks
        assert sample.x_BCFHW is not None
        return anchor(
            sample.output_BCFHW,
            eps_BCFHW=sample.x_BCFHW,
            teacher=lambda x, sigma: networks.teacher(x, sigma, section.standard_guidance).velocity,
            sigmas=section.sigmas,
        )

    return Stateless(loss)


TERM = Term(
    name="anchor",
    about="distance of the student's first velocity from that of the teacher's first steps together",
    paper="DP-DMD, arXiv 2602.03139",
    section=AnchorRecipe,
    source=lambda section: DataSource(AtPureNoise()),
    passes=lambda section: tuple(
        Pass(f"teacher's step {i + 1} with guidance", "teacher", section.branches) for i in range(section.steps)
    ),
    check=_check,
    make=_make,
)
