"""Which of two experts a run trains, and what its student then takes of the rollout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from avd.section import Section


class ExpertsRecipe(Section):
    """A student of two networks, each trained by a run of its own: the expert of high noise takes the first stages, the
    one of low noise the others, beginning where the first one ends."""

    train: Literal["high", "low"] | None = None
    """The expert that this run trains; null: one network takes all stages."""
    high_stages: int = Field(0, ge=0)
    """Stages of the expert of high noise."""
    high: str | None = None
    """To train the low one: the student of the run that trained the high one, which takes the first stages, frozen. Or
    a many-step model, which takes them itself, without guidance."""

    def trained_of(self, stages: int) -> range:
        """The stages, of so many, that the run's student takes."""
        high = self.high_stages
        return {None: range(stages), "high": range(high), "low": range(high, stages)}[self.train]

    def check(self, timesteps: Sequence[float], transition: str) -> None:
        """Raise ValueError unless a rollout of these stages can be shared so."""
        if self.high is not None and self.train != "low":
            raise ValueError("experts.high is for training the other expert: set experts.train to low")
        if self.train is None:
            if self.high_stages:
                raise ValueError("experts.high_stages is set: set experts.train to high or low, too")
            return
        if not 0 < self.high_stages < len(timesteps):
            raise ValueError(f"experts.high_stages must be from 1 to {len(timesteps) - 1}, of all timesteps")
        if transition != "euler":
            raise ValueError("experts take Euler steps: set rollout.transition to euler")
