"""Discrete consistency distillation: neighbours on the teacher's path become one clean video (LCM, arXiv 2310.04378).

On a grid of noise levels s_N = 1 > ... > s_0 = 0, a real latent is noised to a random level s, and the guided teacher
takes one Euler step to the level s' that lies `skip` below it:

    x' = x + (s' - s) v_teacher(x, s)                      on the teacher's path through x
    f(x, s) = x - s v(x, s)                                what a network makes of x; f(x, 0) = x for any of them
    loss = mean d(f_student(x, s), f_target(x', s'))       per sample, over all of its values

The target is a moving average of the student, or the student as it is, and carries no gradient. d is the square or the
pseudo-Huber distance sqrt(delta^2 + c^2) - c. The student sees plain prompts: guidance is distilled into it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from avd.flow import many_step_sigmas, per_sample
from avd.objectives.adaptive import weigh_by_band
from avd.objectives.passes import Pass, Place
from avd.objectives.source import DataSource, Levels, Random, Stages
from avd.objectives.term import Auxiliary, Averaged, Evaluate, GuidedSection, Sample, Setting, Stateless, Term
from avd.types import LossTerm

Distance = Literal["huber", "square"]
Predict = Callable[[Tensor, Tensor], Tensor]
"""Velocity of (x_BCFHW, sigma_B), with prompts and guidance already bound."""

_HUBER = 1e-3
"""c of the pseudo-Huber distance, as in LCM, PCM and DCM."""


def consistency(
    velocity_BCFHW: Tensor,
    *,
    x_BCFHW: Tensor,
    sigma_B: Tensor,
    below_B: Tensor,
    teacher: Predict,
    target: Predict,
    distance: Distance = "huber",
    edge_B: Tensor | None = None,
    name: str = "consistency",
    coherence: float = 0.0,
    lag: int = 1,
) -> LossTerm:
    """The loss of the student's velocity at `x_BCFHW`, of noise level `sigma_B`; gradient reaches only the velocity.

    `below_B` are the levels, from `edge_B` up to below `sigma_B`, that the teacher steps to. `teacher` is the guided
    velocity and `target` that of the target network; both are called once, without gradient. `edge_B`, None for 0, are
    the levels at which both predictions are compared: at 0 clean videos. `coherence` is the weight of `incoherence` at
    `lag`, where it is above 0.
    """
    edge_B = torch.zeros_like(sigma_B) if edge_B is None else edge_B

    def step(x: Tensor, velocity: Tensor, above_B: Tensor, level_B: Tensor) -> Tensor:
        return x + per_sample(level_B - above_B, x) * velocity

    found = step(x_BCFHW, velocity_BCFHW, sigma_B, edge_B)
    with torch.no_grad():
        stepped = step(x_BCFHW, teacher(x_BCFHW, sigma_B), sigma_B, below_B)
        wanted = step(stepped, target(stepped, below_B), below_B, edge_B)
    square = (found - wanted).square()
    each = square if distance == "square" else (square + _HUBER**2).sqrt() - _HUBER
    loss_B = each.flatten(1).mean(1)
    metrics = {f"{name}_square": square.detach().mean().item()}  # a mean, so parts of a batch add up
    if coherence:
        apart_B = incoherence(found, wanted, lag)
        loss_B, metrics[f"{name}_incoherence"] = loss_B + coherence * apart_B, apart_B.detach().mean().item()
    return LossTerm(name, loss_B, metrics)


def incoherence(found_BCFHW: Tensor, wanted_BCFHW: Tensor, lag: int) -> Tensor:
    """mean((found_{f + lag} - found_f) - (wanted_{f + lag} - wanted_f))^2 per sample, over latent frames f (DCM, arXiv
    2506.03123): how differently two videos change. It is blind to an error that is the same in all frames. (B,)"""
    error = found_BCFHW - wanted_BCFHW
    return (error[:, :, lag:] - error[:, :, :-lag]).square().flatten(1).mean(1)


@dataclass(frozen=True)
class OnGrid:
    """Each sample at a random level of a many-step sampler's grid, 0 left out; see `objectives.source.Law`."""

    steps: int
    shift: float
    name: str = "consistency"
    place: Place = "full"

    def draw(self, random: Random, stages: Stages) -> Levels:
        index_B = random.integers(self.name, "level", high=self.steps)
        return Levels(self.sigmas(index_B), index_B)

    def teaches(self, stages: Stages) -> frozenset[int]:
        return stages.full

    def sigmas(self, index_B: Tensor) -> Tensor:
        """The levels at places of the grid, 1 first; past its end they are 0. float32."""
        grid = many_step_sigmas(self.steps, self.shift).float().to(index_B.device)
        return grid[index_B.clamp_max(self.steps)]


class ConsistencyRecipe(GuidedSection):
    """Discrete consistency distillation; weight 0 leaves it out."""

    steps: int = Field(48, ge=1, le=1000)
    """Steps of the grid."""
    skip: int = Field(1, ge=1)
    """Steps of the grid between the student's level and the target's."""
    shift: float = Field(5.0, ge=1e-3, le=1000)
    """Timestep shift of the grid."""
    distance: Distance = "huber"
    target_ema: float = Field(0.95, ge=0, lt=1)
    """Decay of the average of the student that is the target; 0: the student itself."""
    adaptive: bool = False
    """Weigh each sample by how its loss compares with what is usual at its noise levels."""
    omega: float = Field(0.95, ge=0, lt=1)
    """Decay of what is usual."""
    k: float = Field(1.0, ge=0, le=1e6)
    """How sharply a sample that is worse than usual loses weight, per spread of the losses there."""

    @model_validator(mode="after")
    def _check(self) -> ConsistencyRecipe:
        if self.skip > self.steps:
            raise ValueError(f"skip must be at most steps ({self.steps})")
        return self

    @property
    def law(self) -> OnGrid:
        return OnGrid(self.steps, self.shift)


def consistency_of(
    sample: Sample,
    section: ConsistencyRecipe,
    below_B: Tensor,
    edge_B: Tensor | None = None,
    name: str = "consistency",
    coherence: float = 0.0,
    lag: int = 1,
) -> LossTerm:
    """`consistency` of a sample of real data, with the networks and the values of its section."""
    networks = sample.networks
    assert sample.x_BCFHW is not None and sample.sigma_B is not None

    def target(x: Tensor, sigma: Tensor) -> Tensor:
        return networks.auxiliary("target", x, sigma) if section.target_ema else networks.student(x, sigma)

    return consistency(
        sample.output_BCFHW,
        x_BCFHW=sample.x_BCFHW,
        sigma_B=sample.sigma_B,
        below_B=below_B,
        teacher=lambda x, sigma: networks.teacher(x, sigma, section.standard_guidance).velocity,
        target=target,
        distance=section.distance,
        edge_B=edge_B,
        name=name,
        coherence=coherence,
        lag=lag,
    )


def auxiliaries(section: ConsistencyRecipe) -> tuple[Auxiliary, ...]:
    return (Averaged("target", section.target_ema),) if section.target_ema else ()


def passes(section: ConsistencyRecipe) -> tuple[Pass, ...]:
    return (
        Pass("teacher's step with guidance", "teacher", section.branches),
        Pass("target", "target" if section.target_ema else "student"),
    )


def _make(section: ConsistencyRecipe, setting: Setting) -> Evaluate:
    def loss(sample: Sample) -> LossTerm:
        assert sample.index_B is not None
        return consistency_of(sample, section, section.law.sigmas(sample.index_B + section.skip))

    if not section.adaptive:
        return Stateless(loss)
    return weigh_by_band("consistency", loss, section.steps, section.omega, section.k, setting)


TERM = Term(
    name="consistency",
    about="distance between the student's clean videos at two neighbouring noise levels of the teacher's path",
    paper="LCM, arXiv 2310.04378",
    section=ConsistencyRecipe,
    source=lambda section: DataSource(section.law),
    auxiliaries=auxiliaries,
    passes=passes,
    transition="renoise",
    make=_make,
)
