"""Ways of making videos with a model, behind one call: prompts in, latents out."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from avd.flow import few_step_sigmas
from avd.models.backbone import Backbone
from avd.models.identity import entries_in_memory, entries_of, identity_of
from avd.models.interpolator import FrameInterpolator
from avd.models.settings import Settings, SolverName
from avd.models.sizes import Sizes
from avd.models.solvers import make_solver
from avd.models.weights import Weights
from avd.sampling.rollout import Rollout, make_stages
from avd.sampling.teacher import sample_teacher
from avd.types import Conditions, Transition


class SampledModel(Protocol):
    """What sampling needs of a `models.family.TextToVideo`, which describes it."""

    @property
    def settings(self) -> Settings: ...

    @property
    def folder(self) -> Path | None: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def sizes(self) -> Sizes: ...

    @property
    def identity(self) -> str: ...

    def latent_shape(self, frames: int | None = None) -> tuple[int, int, int, int]: ...

    def velocity(self, device: torch.device | None = None) -> Backbone: ...

    def weights(self) -> Weights: ...

    def encode_prompts(self, prompts: list[str]) -> Conditions: ...

    def decode_video(self, latents: Tensor) -> np.ndarray: ...


class Sampler(Protocol):
    """`steps` and `network_calls` are those of one video."""

    @property
    def model(self) -> SampledModel: ...

    @property
    def steps(self) -> int: ...

    @property
    def network_calls(self) -> int: ...

    @property
    def identity(self) -> str:
        """Changes with anything that the videos of a prompt and a noise depend on, weights included. Loads no
        network."""
        ...

    @property
    def unconditional(self) -> tuple[str, ...]:
        """Prompts that each call encodes besides its own."""
        ...

    @property
    def description(self) -> dict[str, Any]:
        """What makes the same videos again, beside model, prompt and seed: for a file's metadata."""
        ...

    def __call__(self, prompts: list[str], generator: torch.Generator) -> Tensor:
        """Whitened latents (B, C, F, H, W), one clip per prompt."""
        ...


@dataclass(frozen=True)
class ManySteps:
    """Many guided steps. `solver` and `negative_prompt` None are the model's own; "" is the null prompt."""

    model: SampledModel
    steps: int
    guidance: float
    solver: SolverName | None = None
    negative_prompt: str | None = None

    @property
    def network_calls(self) -> int:
        return self.steps * (1 if self.guidance == 1.0 else 2)

    @property
    def identity(self) -> str:
        return _identity(self.model, None, self.steps, self.guidance, self.solver, self.negative_prompt)

    @property
    def unconditional(self) -> tuple[str, ...]:
        return (self.model.settings.negative_prompt if self.negative_prompt is None else self.negative_prompt,)

    @property
    def description(self) -> dict[str, Any]:
        settings = self.model.settings
        return {
            "steps": self.steps,
            "guidance": self.guidance,
            "solver": self.solver or settings.solver,
            "shift": settings.shift,
            "negative_prompt": self.unconditional[0],
        }

    def __call__(self, prompts: list[str], generator: torch.Generator) -> Tensor:
        shift, device = self.model.settings.shift, self.model.device
        return sample_teacher(
            self.model.velocity(device),
            _noise(self.model, len(prompts), generator).to(device),
            self.model.encode_prompts(prompts).to(device),
            self.model.encode_prompts(list(self.unconditional)).to(device),
            steps=self.steps,
            guidance=self.guidance,
            shift=shift,
            solver=make_solver(self.solver or self.model.settings.solver, shift),
        ).cpu()


@dataclass(frozen=True)
class FewSteps:
    """The student's rollout at `timesteps` (of 1000), its first stages at half rate and half resolution if asked.

    Raises ValueError as `Rollout` for stages and a transition that do not go together.
    """

    model: SampledModel
    timesteps: tuple[float, ...]
    half_rate_stages: int = 0
    interpolator: FrameInterpolator | None = None
    transition: Transition = "renoise"
    half_resolution_stages: int = 0

    @property
    def steps(self) -> int:
        return len(self.timesteps)

    @property
    def network_calls(self) -> int:
        return len(self.timesteps)

    @property
    def identity(self) -> str:
        between = self.interpolator if any(self._strided_stages) else None
        return _identity(self.model, between, self.timesteps, *self._strided_stages, self.transition)

    @property
    def unconditional(self) -> tuple[str, ...]:
        return ()

    @property
    def description(self) -> dict[str, Any]:
        return {
            "timesteps": list(self.timesteps),
            "half_rate_stages": self.half_rate_stages,
            "half_resolution_stages": self.half_resolution_stages,
            "transition": self.transition,
        }

    @property
    def _strided_stages(self) -> tuple[int, int]:
        return self.half_rate_stages, self.half_resolution_stages

    @torch.no_grad()
    def __call__(self, prompts: list[str], generator: torch.Generator) -> Tensor:
        between = None if self.interpolator is None else self.interpolator.to(self.model.device)
        stages = make_stages(few_step_sigmas(self.timesteps), *self._strided_stages)
        rollout = Rollout(stages, between, self.transition)
        noise, device = _noise(self.model, len(prompts), generator), self.model.device

        def renoise(stage: int) -> Tensor:
            return torch.randn(noise.shape, generator=generator).to(device)

        prompt = self.model.encode_prompts(prompts).to(device)
        return rollout(self.model.velocity(device), noise.to(device), prompt, renoise).cpu()


def _identity(model: SampledModel, interpolator: FrameInterpolator | None, *settings: object) -> str:
    """A hash over the first values of every weight, and the settings of model and sampler."""
    between = () if interpolator is None else entries_in_memory(interpolator)
    entries = chain(entries_of(model.weights()), between)
    return identity_of("sampler", entries, model.identity, model.settings, *settings)


def _noise(model: SampledModel, count: int, generator: torch.Generator) -> Tensor:
    return torch.randn(count, *model.latent_shape(), generator=generator)
