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
"""Forwards that a backward pass costs: one for the gradient of what went in, and one for that of the weights."""
INPUT_BACKWARD = 1.0
"""The same of a backward pass to the input alone, which computes no gradient of a weight."""


@dataclass(frozen=True)
class Pass:
    """`count` forwards of the network `network` per clip, each followed by its backward pass if it has one."""

    name: str
    network: str
    count: float = 1.0
    learns: bool = False
    """Whether a backward pass gives the network's weights their gradient."""
    to_input: bool = False
    """Whether a backward pass gives the gradient of the input, on its way to the student, and leaves the weights alone:
    what `torch.autograd.grad` does with the input as what it asks for."""
    place: Place = "full"

    @property
    def backward(self) -> float:
        """What follows each forward, counted as forwards."""
        if self.learns:
            return BACKWARD
        return INPUT_BACKWARD if self.to_input else 0.0

    def forwards(self, exit_stage: float) -> float:
        """Forwards and backwards, counted as forwards, where rollouts exit at `exit_stage` (0 is the first)."""
        calls = self.count * exit_stage if self.place == "before_exit" else self.count
        return calls * (1.0 + self.backward)
