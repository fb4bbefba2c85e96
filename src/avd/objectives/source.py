"""Where the student is called: what a term judges.

A rollout is the student's own sample, from noise. Real data is noised to a level that a law draws, and the student
predicts its velocity there; at sigma = 1 nothing of the data is left, so a law of that one level gives the student at
pure noise. Terms of equal sources judge one and the same call.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from avd.objectives.passes import Pass, Place


class Random(Protocol):
    """Random numbers of one update for some samples of its batch, by name; see `avd.engine.randomness`."""

    def normal(self, *what: int | str, shape: tuple[int, ...]) -> Tensor:
        """Standard normal numbers, (B, *shape)."""
        ...

    def uniform(self, *what: int | str) -> Tensor:
        """Numbers in [0, 1), (B,)."""
        ...

    def integers(self, *what: int | str, high: int) -> Tensor:
        """Integers in [0, high), (B,)."""
        ...

    def shared_integer(self, *what: int | str, high: int) -> int:
        """One integer in [0, high) for the full batch."""
        ...


@dataclass(frozen=True)
class Stages:
    """Noise levels and strides of the student's stages, first to last."""

    sigmas: tuple[float, ...]
    strides: tuple[tuple[int, int], ...]
    """One of frames, one of rows and columns."""

    @property
    def full(self) -> frozenset[int]:
        """Those at full rate and resolution, by index."""
        return frozenset(i for i, strides in enumerate(self.strides) if strides == (1, 1))


@dataclass(frozen=True)
class Levels:
    """Noise levels drawn for real data. All samples share their strides, as one network call must."""

    sigma_B: Tensor
    index_B: Tensor
    """Which of the law's levels each one is."""
    frame_stride: int = 1
    space_stride: int = 1


class Law(Protocol):
    """Draws the noise levels of real data. Laws are compared by value, so make them frozen dataclasses."""

    @property
    def name(self) -> str:
        """Names the random numbers, and the pass in plans."""
        ...

    @property
    def place(self) -> Place: ...

    def draw(self, random: Random, stages: Stages) -> Levels: ...

    def teaches(self, stages: Stages) -> frozenset[int]:
        """Those of the stages, by index, whose level and strides it draws: the student is called there as when it is
        sampled."""
        ...


@dataclass(frozen=True)
class AtStages:
    """Each sample at a random one of the student's stages, or of those in `only`."""

    name: str
    only: tuple[int, ...] | None = None
    place: Place = "exit"

    def draw(self, random: Random, stages: Stages) -> Levels:
        allowed = range(len(stages.sigmas)) if self.only is None else self.only
        stride = stages.strides[allowed[random.shared_integer(self.name, "stride", high=len(allowed))]]
        choices = [i for i in allowed if stages.strides[i] == stride]
        choice_B = random.integers(self.name, "timestep", high=len(choices))
        index_B = torch.tensor(choices, device=choice_B.device)[choice_B]
        return Levels(torch.tensor(stages.sigmas, device=index_B.device)[index_B], index_B, *stride)

    def teaches(self, stages: Stages) -> frozenset[int]:
        return frozenset(range(len(stages.sigmas)) if self.only is None else self.only)


@dataclass(frozen=True)
class RolloutSource:
    """The clean video of a rollout that exits at a random stage; only the exit stage carries a gradient."""

    def passes(self, rollouts: int, *, in_parts: bool) -> tuple[Pass, ...]:
        """Passes of `rollouts` per cycle, the first of which is judged.

        `in_parts`: a rank's clips take several passes, so the exit runs once without a gradient before terms that need
        the full batch, and again with it.
        """
        plain = rollouts - 1 + in_parts
        found = [Pass("rollouts, before the exit", "student", rollouts, place="before_exit")]
        if plain:
            found.append(Pass("rollouts, exit without gradient", "student", plain, place="exit"))
        return (*found, Pass("student at the exit", "student", learns=True, place="exit"))


@dataclass(frozen=True)
class DataSource:
    """The student's velocity on real data, noised to levels that `law` draws."""

    law: Law

    @property
    def name(self) -> str:
        return self.law.name

    def passes(self) -> tuple[Pass, ...]:
        return (Pass(f"student, {self.law.name}", "student", learns=True, place=self.law.place),)


Source = RolloutSource | DataSource
