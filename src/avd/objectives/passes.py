"""Network passes of a training step, declared where they are caused and counted from there.

Planning turns them into memory and time, a test counts them on real networks, and the docs print them: there is no
second list.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Place = Literal["full", "before_exit", "exit"]
"""Where on the rollout's stages a pass runs: at full frame rate; at every stage before the exit; at one stage, each
being equally likely."""

BACKWARD = 2.0
"""Forwards that a backward pass costs."""


@dataclass(frozen=True)
class Pass:
    """`count` forwards of the network `network` per clip; with `learns`, each is followed by its backward pass."""

    name: str
    network: str
    count: float = 1.0
    learns: bool = False
    place: Place = "full"

    def forwards(self, exit_stage: float) -> float:
        """Forwards and backwards, counted as forwards, where rollouts exit at `exit_stage` (0 is the first)."""
        calls = self.count * exit_stage if self.place == "before_exit" else self.count
        return calls * (1.0 + BACKWARD if self.learns else 1.0)
