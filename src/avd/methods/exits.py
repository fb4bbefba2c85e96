"""Where the rollouts of training exit: at a random stage, whose call alone carries the student's gradient.

Uniform exits are the paper's. Where a share p of the cycles runs the first H of S stages at half rate or resolution,
they train some calls of the student more than others: a later stage may be the exit of every cycle, an early one at
half rate only of the share p, and in full of 1 - p. Balanced exits train each of these n = 2 H + (S - H) calls equally
often, with

    P(exit at an early stage) = H / (n p) in cycles with half rate,   H / (n (1 - p)) in the others

but at most 1. Within the early stages, and within the later ones, all are equally likely.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

from avd.objectives.source import Random

_FINE = 1 << 30
"""Fineness of the random numbers that unequal shares are drawn by."""


@dataclass(frozen=True)
class Exits:
    """How exits are drawn; `strided_share` is p and `strided_stages` H."""

    balanced: bool = False
    strided_stages: int = 0
    strided_share: float = 1.0
    first: int = 0
    """The earliest of uniform exits, where another term teaches the stages before it."""

    def shares(self, stages: int, *, strided: bool) -> tuple[float, ...]:
        """The probability of each of `stages` stages, in cycles with strided stages or in those without."""
        early = self.strided_stages
        if not self.balanced:
            return (0.0,) * self.first + (1 / (stages - self.first),) * (stages - self.first)
        cycles = self.strided_share if strided else 1 - self.strided_share
        at_early = min(1.0, early / ((stages + early) * cycles))
        return (at_early / early,) * early + ((1 - at_early) / (stages - early),) * (stages - early)

    def mean(self, stages: int) -> float:
        """The exit (0 is the first stage) on average over cycles."""
        half, full = (
            sum(i * share for i, share in enumerate(self.shares(stages, strided=each))) for each in (True, False)
        )
        return self.strided_share * half + (1 - self.strided_share) * full

    def draw(self, random: Random, rollout: int, stages: int, *, strided: bool) -> int:
        """The exit of one rollout of an update, the same for the full batch."""
        if not self.balanced:
            return self.first + random.shared_integer("rollout", rollout, "exit", high=stages - self.first)
        number = random.shared_integer("rollout", rollout, "balanced exit", high=_FINE) / _FINE
        ends = list(accumulate(self.shares(stages, strided=strided)))
        return next((i for i, end in enumerate(ends) if number < end), stages - 1)
