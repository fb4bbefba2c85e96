"""Distil a teacher into a few-step student: the task that `training.loop` runs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from avd.config import Recipe
from avd.data import BatchOrder, LatentSource
from avd.flow import few_step_sigmas
from avd.interpolation import FrameInterpolator
from avd.models.wan import VideoModel
from avd.objectives.temporal import temporal_regularization
from avd.sampling.rollout import Rollout, make_stages
from avd.sampling.teacher import sample_teacher
from avd.training.checkpoint import pack_module, unpack_module
from avd.training.cycle import Batch, Cycle
from avd.training.folder import whole_folder
from avd.training.monitors import Monitor
from avd.training.preview import write_preview
from avd.training.randomness import generator_for
from avd.training.roles import Roles
from avd.types import UserError

_PREVIEWS = 4


class DistillTask:
    """See `training.loop.Task`. One update is one cycle (`training.cycle`).

    `source` holds real latents with their prompts; both the regression branch and the rollouts' prompts come from it,
    each in its own shuffled order. `interpolator` is needed for half-rate stages.
    """

    def __init__(
        self, recipe: Recipe, model: VideoModel, source: LatentSource, interpolator: FrameInterpolator | None
    ) -> None:
        self.recipe, self.model, self.source, self.interpolator = recipe, model, source, interpolator
        self.roles = Roles(model, recipe)
        if interpolator is not None:
            interpolator.eval().requires_grad_(False)
        sigmas = few_step_sigmas(recipe.rollout.timesteps)
        self.full_rate = Rollout(make_stages(sigmas))
        check_half_rate(recipe, source.latents([0]).shape[2], interpolator)
        self.rollout = Rollout(make_stages(sigmas, recipe.rollout.half_rate_stages), interpolator)
        self.cycle = Cycle(recipe, self.roles, self.rollout, model.encode_prompts([""]), self._truncation())
        batch = recipe.training.batch
        self.video_order = BatchOrder(len(source), batch, recipe.seed)
        self.prompt_order = BatchOrder(len(source), batch, recipe.seed + 1)
        self.monitor = Monitor(recipe, source, _Studio(self)) if recipe.monitors.every else None
        self.roll_backs = 0
        """How often the run was sent back; decides the noise from there on."""
        if self.monitor is not None:
            self.cycle.means.listener = self.monitor.weights.add

    def update(self, n: int) -> dict[str, float]:
        self.cycle.rollout = self.rollout if falls_in_share(n, self.recipe.rollout.half_rate_share) else self.full_rate
        rollouts = 1 if self.recipe.rollout.shared else self.recipe.fake_score.updates
        videos = self.video_order.next()
        batch = Batch(
            self.source.latents(videos),
            self.source.prompts(videos),
            tuple(self.source.prompts(self.prompt_order.next()) for _ in range(rollouts)),
        )
        branch = ("roll-back", self.roll_backs) if self.roll_backs else ()
        figures = self.cycle.run(batch, generator_for(self.recipe.seed, "cycle", n, *branch))
        if self.monitor is not None:
            self.monitor.observe(figures)
        return figures

    def validate(self, n: int) -> dict[str, float]:
        return {} if self.monitor is None else self.monitor.measure()

    @torch.no_grad()
    def sample(self, folder: Path, n: int) -> None:
        """The averaged student on the first prompts of the source, from fixed noise, side by side in one video."""
        count = min(_PREVIEWS, len(self.source))
        generator = generator_for(self.recipe.seed, "preview")
        shape = self.source.latents([0]).shape[1:]
        noise = torch.randn(count, *shape, generator=generator)
        prompts = self.source.prompts(list(range(count)))
        latents = self.rollout(self.roles.average.module, noise, prompts, generator)
        videos = self.model.decode_video(latents)
        write_preview(folder / f"update-{n:06d}.mp4", videos, self.model.settings.fps)

    def tensors(self) -> dict[str, Tensor]:
        means = {f"loss_means.{k}": v for k, v in self.cycle.means.state_dict().items()}
        average = pack_module("average", self.roles.average.module)
        return self.roles.student.tensors() | self.roles.fake_score.tensors() | average | means

    def state(self) -> dict[str, Any]:
        return {
            "student": self.roles.student.state(),
            "fake_score": self.roles.fake_score.state(),
            "video_order": self.video_order.state_dict(),
            "prompt_order": self.prompt_order.state_dict(),
            "roll_backs": self.roll_backs,
            "monitors": None if self.monitor is None else self.monitor.state_dict(),
        }

    def load(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        self.roles.student.load(tensors, state["student"])
        self.roles.fake_score.load(tensors, state["fake_score"])
        unpack_module("average", self.roles.average.module, tensors)
        self.cycle.means.load_state_dict({k: tensors[f"loss_means.{k}"] for k in ("mean", "seen")})
        self.video_order.load_state_dict(state["video_order"])
        self.prompt_order.load_state_dict(state["prompt_order"])
        self.roll_backs = state["roll_backs"]
        if self.monitor is not None and state["monitors"] is not None:  # it may have been switched on since
            self.monitor.load_state_dict(state["monitors"])

    def export(self, folder: Path) -> None:
        """`student/`: a diffusers folder of the averaged student, with how it is to be sampled."""
        with whole_folder(folder / "student") as student:
            self.model.save(
                student,
                transformer=self.roles.average.module.transformer,
                student_timesteps=self.recipe.rollout.timesteps,
                half_rate_stages=self.recipe.rollout.half_rate_stages,
            )
            if self.interpolator is not None:
                self.interpolator.save(student / "interpolator")

    def _truncation(self) -> float:
        """The temporal loss's threshold; "data" is the loss of up to 256 real latents."""
        truncation = self.recipe.objective.temporal.truncation
        if truncation == "never":
            return -math.inf
        if truncation == "data":
            latents = self.source.latents(list(range(min(256, len(self.source)))))
            return temporal_regularization(latents).per_sample_B[0].item()
        return truncation


class _Studio:
    """See `training.monitors.Studio`: videos of the networks of a run."""

    def __init__(self, task: DistillTask) -> None:
        self._task = task

    @torch.no_grad()
    def student(self, noise: Tensor, prompts: Tensor, generator: torch.Generator) -> Tensor:
        return self._task.rollout(self._task.roles.average.module, noise, prompts, generator)

    def teacher(self, noise: Tensor, prompts: Tensor, steps: int | None) -> Tensor:
        settings, null_prompt = self._task.model.settings, self._task.cycle.null_prompt
        return sample_teacher(
            self._task.roles.teacher,
            noise,
            prompts,
            null_prompt,
            steps=settings.steps if steps is None else steps,
            guidance=settings.guidance,
            shift=settings.shift,
        )

    def decode(self, latents: Tensor) -> np.ndarray:
        return self._task.model.decode_video(latents)


def falls_in_share(n: int, share: float) -> bool:
    """Whether event `n` is one of an evenly spread `share` of all events; over n events they are floor(n share)."""
    return math.floor((n + 1) * share) > math.floor(n * share)


def check_half_rate(recipe: Recipe, frames: int, interpolator: FrameInterpolator | None) -> None:
    """Raise UserError if `recipe` has half-rate stages that clips of `frames` latent frames cannot go through."""
    if not recipe.rollout.half_rate_stages:
        return
    if interpolator is None:
        raise UserError(
            f"recipe {recipe.name} has half-rate stages and {recipe.model} ships no interpolator: "
            "train one with `avd train interpolator` or set rollout.half_rate_stages=0"
        )
    if frames % 2 == 0:
        raise UserError(
            f"recipe {recipe.name} has half-rate stages and the data have {frames} latent frames, an even "
            "number: prepare clips of 8 n + 1 frames or set rollout.half_rate_stages=0"
        )
