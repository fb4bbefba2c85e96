"""Phased consistency distillation: consistency within each phase of the noise levels (PCM, arXiv 2405.18407, Sec. 3).

Edges e_0 > e_1 > ... > e_M = 0 cut the noise levels into phases. From a level s of a phase, a network predicts the
noisy video at the phase's lower edge e, and neighbours on the teacher's path should predict the same one:

    x' = x + (s' - s) v_teacher(x, s)                      one Euler step of the guided teacher, to s' >= e
    f_e(x, s) = x + (e - s) v(x, s)                        what a network makes of x at the edge; f_e(x, e) = x
    loss = mean d(f_e,student(x, s), f_e,target(x', s'))   per sample; d as in LCM, `objectives.consistency`

So a level of the first phase need not see through all the noise at once. The student is sampled by Euler steps from
edge to edge, without new noise; so the edges are its stages and where the last one ends. With one phase this is LCM.

Levels are those of a many-step sampler's grid, into which the edges are inserted: at an edge that is rounded to the
grid, the student would not be sampled.

DCM (arXiv 2506.03123) has a network of its own for each of two phases. In the noisier one the loss has a second part,
`coherence` times how differently the two predictions change over `lag` latent frames (`consistency.incoherence`).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from pydantic import Field, model_validator
from torch import Tensor

from avd.flow import TIMESTEPS, many_step_sigmas
from avd.objectives.adaptive import weigh_by_band
from avd.objectives.consistency import ConsistencyRecipe, auxiliaries, consistency_of, passes
from avd.objectives.passes import Place
from avd.objectives.source import DataSource, Levels, Random, Stages
from avd.objectives.term import Evaluate, Sample, Setting, Stateless, Term, TrainedStages
from avd.section import MOST_WEIGHT
from avd.types import LossTerm

_SAME = 1e-6
"""Distance in noise level within which a level of the grid is an edge."""


class PhasedGrid:
    """The levels of a many-step sampler's grid and the edges of phases, from the first edge down to the last.

    `edges` are noise levels that fall.
    """

    def __init__(self, steps: int, shift: float, edges: tuple[float, ...]) -> None:
        grid = many_step_sigmas(steps, shift)
        edge_E = torch.tensor(edges, dtype=torch.float64)
        inner = grid[(grid < edges[0]) & (grid > edges[-1])]
        inner = inner[(inner[:, None] - edge_E).abs().amin(1) > _SAME]
        levels = torch.cat([edge_E, inner]).sort(descending=True).values
        self.sigmas = levels.float()
        """All levels, falling."""
        self._edge_places = torch.isin(levels, edge_E).nonzero()[:, 0]

    @property
    def levels(self) -> int:
        """How many the student is called at: all but the last, which it only leads to."""
        return len(self.sigmas) - 1

    def edge(self, index_B: Tensor) -> Tensor:
        """Places of the edges that end the phases of levels given by place."""
        places = self._edge_places.to(index_B.device)
        return places[torch.searchsorted(places, index_B, right=True)]

    def at(self, index_B: Tensor) -> Tensor:
        """The levels at places, (B,)."""
        return self.sigmas.to(index_B.device)[index_B]


@dataclass(frozen=True)
class OnPhases:
    """Each sample at a random level of a `PhasedGrid`; see `objectives.source.Law`.

    `edges` None: the student's stages and 0. Its random numbers have the words of `consistency.OnGrid`, so that one
    phase is LCM to the last byte.
    """

    steps: int
    shift: float
    edges: tuple[float, ...] | None = None
    name: str = "consistency"
    place: Place = "full"

    def draw(self, random: Random, stages: Stages) -> Levels:
        grid = self.grid(stages.sigmas)
        index_B = random.integers(self.name, "level", high=grid.levels)
        return Levels(grid.at(index_B), index_B)

    def teaches(self, stages: Stages) -> frozenset[int]:
        return stages.full

    def grid(self, stages: tuple[float, ...]) -> PhasedGrid:
        return PhasedGrid(self.steps, self.shift, (*stages, 0.0) if self.edges is None else self.edges)


class PhasedConsistencyRecipe(ConsistencyRecipe):
    """Phased consistency distillation; weight 0 leaves it out. `steps` and `shift` are of the grid without the edges,
    and a step of `skip` levels ends at the edge at the latest."""

    target_ema: float = Field(0.0, ge=0, lt=1)
    """Decay of the average of the student that is the target; 0: the student itself, as published."""
    edges: tuple[float, ...] | None = Field(None, max_length=1000)
    """Edges of the phases as timesteps of 1000, falling; levels above the first and below the last are not learnt.
    None: the student's stages and 0. An expert's may be two, around all its stages (DCM)."""

    coherence: float = Field(0.0, ge=0, le=MOST_WEIGHT)
    """Weight, within the term, of how differently prediction and target change over time (DCM)."""
    lag: int = Field(3, ge=1, le=1000)
    """Latent frames over which that change is taken."""

    @model_validator(mode="after")
    def _check_edges(self) -> PhasedConsistencyRecipe:
        edges = self.edges
        if edges is not None and not (
            len(edges) > 1 and all(a > b for a, b in pairwise(edges)) and 0 <= edges[-1] < edges[0] <= TIMESTEPS
        ):
            raise ValueError(f"edges are {list(edges)}: they must be at least two and fall within 0 to {TIMESTEPS}")
        return self

    @property
    def phases(self) -> OnPhases:
        edges = None if self.edges is None else tuple(edge / TIMESTEPS for edge in self.edges)
        return OnPhases(self.steps, self.shift, edges)


def _check(section: PhasedConsistencyRecipe, stages: TrainedStages) -> None:
    """Refuse edges that the student's Euler steps do not go between."""
    steps = (*stages.timesteps, stages.end)
    edges = (*stages.timesteps, 0.0) if section.edges is None else section.edges
    one_phase = stages.expert and len(edges) == 2
    if one_phase and edges[0] >= steps[0] and stages.timesteps[-1] > edges[1] >= stages.end:
        return
    if edges != steps:
        wanted = [f"{timestep:g}" for timestep in steps]
        raise ValueError(
            f"edges are {', '.join(f'{edge:g}' for edge in edges)}, and the student's steps go between "
            f"{', '.join(wanted)}: set edges to [{','.join(wanted)}]"
            + (f", or to [{wanted[0]},{wanted[-1]}] for one phase" if stages.expert else "")
        )


def _make(section: PhasedConsistencyRecipe, setting: Setting) -> Evaluate:
    name, grid = "phased_consistency", section.phases.grid(setting.sigmas)

    def loss(sample: Sample) -> LossTerm:
        assert sample.index_B is not None
        edge_B = grid.edge(sample.index_B)
        below_B = torch.minimum(sample.index_B + section.skip, edge_B)
        edge = grid.at(edge_B)
        return consistency_of(sample, section, grid.at(below_B), edge, name, section.coherence, section.lag)

    if not section.adaptive:
        return Stateless(loss)
    return weigh_by_band(name, loss, grid.levels, section.omega, section.k, setting)


TERM = Term(
    name="phased_consistency",
    about="distance between the student's noisy videos at the edge of a phase, from neighbours on the teacher's path",
    paper="PCM, arXiv 2405.18407",
    section=PhasedConsistencyRecipe,
    source=lambda section: DataSource(section.phases),
    auxiliaries=auxiliaries,
    passes=passes,
    least_frames=lambda section: section.lag + 1 if section.coherence else 1,
    transition="euler",
    check=_check,
    noisy=True,
    make=_make,
)
