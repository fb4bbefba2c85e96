"""The rollout's section of a recipe: the stages that a student goes through, and what training takes of them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from avd.flow import few_step_sigmas
from avd.objectives.source import Stages
from avd.section import Section
from avd.types import Transition


class RolloutRecipe(Section):
    """The student's stages."""

    timesteps: tuple[float, ...] = Field((1000, 900, 757, 522), max_length=1000)
    """Student timesteps, of 1000 (paper, Settings)."""
    half_rate_stages: int = Field(0, ge=0)
    """Stages at half frame rate that training's rollout includes."""
    half_resolution_stages: int = Field(0, ge=0)
    """Stages at half the height and width of the latents that training's rollout includes."""
    half_rate_share: float = Field(1.0, gt=0, le=1)
    """Share of the cycles that include stages at half rate or resolution; the others run at full rate and resolution,
    so one student learns both."""
    shared: bool = True
    """One rollout feeds the student update and all fake-score updates of a cycle; false: a fresh one for each."""
    transition: Transition = "renoise"
    """From a stage to the next, in training and in sampling: noise the clean video afresh, or take an Euler step."""
    drawn_shift: float | None = Field(None, gt=0, le=1000)
    """Train on rollouts through random noise levels after the first, drawn again for each: uniform with this timestep
    shift, but never above the level before. None: through the timesteps. Sampling is at the timesteps in any case."""
    exits: Literal["uniform", "balanced"] = "uniform"
    """Where training's rollouts exit: at any stage (paper), or so that each stage learns equally often at each rate."""
    first_exit: int = Field(0, ge=0)
    """The earliest of the stages that the run trains, from 0, at which uniform exits are: what judges rollouts leaves
    those before it alone."""

    interpolator: Literal["frozen", "trained"] = "frozen"
    """Whether the interpolator learns with the student, from the gradient of samples that it fills in."""
    interpolator_rate: float = Field(1e-4, gt=0, le=1)
    """Learning rate of an interpolator that is trained; its optimizer is else the student's."""

    @property
    def strided_stages(self) -> tuple[int, int]:
        """How many of the first stages run at half rate, and at half resolution."""
        return self.half_rate_stages, self.half_resolution_stages

    def stages(self, trained: range) -> Stages:
        """The noise levels of some of its stages, and the strides that they may run at."""
        sigmas = few_step_sigmas(self.timesteps)
        strides = tuple((1 + (i < self.half_rate_stages), 1 + (i < self.half_resolution_stages)) for i in trained)
        return Stages(tuple(sigmas[i] for i in trained), strides)

    @model_validator(mode="after")
    def _check(self) -> RolloutRecipe:
        few_step_sigmas(self.timesteps)
        for name in ("half_rate_stages", "half_resolution_stages"):
            count = getattr(self, name)
            if count >= len(self.timesteps):
                raise ValueError(f"{name} must be below the number of timesteps ({len(self.timesteps)})")
            if count and self.transition == "euler":
                which = name.removesuffix("_stages").replace("_", "-")
                raise ValueError(f"{which} stages are re-noised: set transition to renoise, or {name} to 0")
        if self.half_resolution_stages > self.half_rate_stages > 0:
            raise ValueError(
                f"half_resolution_stages ({self.half_resolution_stages}) are more than half_rate_stages "
                f"({self.half_rate_stages}): no interpolator learns to fill in frames at half resolution; set as many "
                "or fewer, or half_rate_stages to 0"
            )
        if self.first_exit and self.exits == "balanced":
            raise ValueError("balanced exits are at every stage: set first_exit to 0, or exits to uniform")
        if self.exits == "balanced" and (not any(self.strided_stages) or self.half_rate_share == 1):
            raise ValueError(
                "balanced exits need two rates: set half_rate_stages and a half_rate_share below 1, or exits to uniform"
            )
        if self.interpolator == "trained" and not any(self.strided_stages):
            raise ValueError(
                "interpolator is trained, and no stage runs at half rate or resolution: set interpolator to frozen, or "
                "half_rate_stages to at least 1"
            )
        if self.drawn_shift is not None and self.transition == "euler":
            raise ValueError(
                "Euler steps are learnt between the timesteps: set transition to renoise, or drawn_shift to null"
            )
        return self
