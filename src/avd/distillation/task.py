"""Distil a teacher into a few-step student: the task that `training.loop` runs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from avd.config import Recipe
from avd.data import BatchOrder, LatentSource
from avd.distillation.monitoring.monitor import Monitor
from avd.distillation.roles import Roles
from avd.distillation.step import Batch, Cycle
from avd.engine.packing import pack_weights, unpack_weights
from avd.engine.preview import write_preview
from avd.engine.randomness import UpdateRandom, derive_seed
from avd.engine.ranks import SINGLE_PROCESS, Ranks
from avd.engine.run_folder import atomic_folder
from avd.flow import few_step_sigmas
from avd.models.family import TextToVideo
from avd.models.interpolator import FrameInterpolator
from avd.models.solvers import make_solver
from avd.objectives.temporal import temporal_regularization
from avd.sampling.rollout import Renoise, Rollout, make_stages
from avd.sampling.teacher import sample_teacher
from avd.types import Conditions, UserError

_PREVIEWS = 4


class DistillTask:
    """See `training.loop.Task`. One update is one cycle (`training.cycle`).

    `source` holds real latents with their prompts; both the regression branch and the rollouts' prompts come from it,
    each in its own shuffled order. `interpolator` is needed for half-rate stages. Every rank has the whole source and
    reads its own samples of each batch.
    """

    def __init__(
        self,
        recipe: Recipe,
        model: TextToVideo,
        source: LatentSource,
        interpolator: FrameInterpolator | None,
        ranks: Ranks = SINGLE_PROCESS,
    ) -> None:
        self.recipe, self.model, self.source, self.interpolator = recipe, model, source, interpolator
        self.ranks, self.samples = ranks, ranks.samples(recipe.training.batch)
        shape = tuple(source.latents([0]).shape[1:])
        strides = (1, 2) if recipe.rollout.half_rate_stages else (1,)
        channels, frames, height, width = shape
        sizes = replace(model.sizes, latent_CFHW=(channels, frames, height, width))
        check_sequences({sizes.tokens(stride) for stride in strides}, ranks.context_size)
        null_prompt = model.encode_prompts([""]).to(ranks.device)
        self.roles = Roles(model, recipe, ranks)
        if interpolator is not None:
            interpolator.eval().requires_grad_(False).to(ranks.device)
        sigmas = few_step_sigmas(recipe.rollout.timesteps)
        self.full_rate = Rollout(make_stages(sigmas))
        check_half_rate(recipe, shape[1], interpolator)
        self.rollout = Rollout(make_stages(sigmas, recipe.rollout.half_rate_stages), interpolator)
        self.cycle = Cycle(recipe, self.roles, self.rollout, null_prompt, self._truncation(), ranks)
        model.drop("text_encoder", "vae")  # all is latents and embeddings by now
        self.video_order, self.prompt_order = (
            BatchOrder(
                len(source), len(self.samples), recipe.seed + i, rank=ranks.data_rank, world_size=ranks.data_size
            )
            for i in range(2)
        )
        self.monitor = Monitor(recipe, source, RunSampler(self), ranks) if recipe.monitors.every else None
        self.roll_backs = 0
        """How often the run was sent back; decides the noise from there on."""
        if self.monitor is not None:
            self.cycle.means.listener = self.monitor.weights.add

    def update(self, n: int) -> dict[str, float]:
        self.cycle.rollout = self.rollout if falls_in_share(n, self.recipe.rollout.half_rate_share) else self.full_rate
        rollouts = 1 if self.recipe.rollout.shared else self.recipe.fake_score.updates
        videos, device = self.video_order.next(), self.ranks.device
        batch = Batch(
            self.source.latents(videos).to(device),
            self.source.prompts(videos).to(device),
            tuple(self.source.prompts(self.prompt_order.next()).to(device) for _ in range(rollouts)),
        )
        seed = self.recipe.seed
        if self.roll_backs:
            seed = derive_seed(seed, "roll-back", self.roll_backs)
        metrics = self.cycle.run(batch, UpdateRandom(seed, n, self.samples, device))
        if self.monitor is not None:
            self.monitor.observe(metrics)
        return metrics

    def validate(self, n: int) -> dict[str, float]:
        metrics = {} if self.monitor is None else self.monitor.measure()
        self.model.drop("vae")  # the room is training's
        return metrics

    @torch.no_grad()
    def sample(self, folder: Path, n: int) -> None:
        """The averaged student on the first prompts of the source, from fixed noise, side by side in one video."""
        count, shape = min(_PREVIEWS, len(self.source)), self.source.latents([0]).shape[1:]
        draws = UpdateRandom(derive_seed(self.recipe.seed, "preview"), 0, range(count), self.ranks.device)
        normal = partial(draws.normal, shape=shape)
        prompts = self.source.prompts(list(range(count))).to(self.ranks.device)
        latents = self.rollout(self.roles.average.module, normal("start"), prompts, normal)
        if self.ranks.is_main:
            videos = self.model.decode_video(latents.cpu())
            write_preview(folder / f"update-{n:06d}.mp4", videos, self.model.settings.fps)
        self.model.drop("vae")  # the room is training's

    def tensors(self) -> dict[str, Tensor]:
        means = {f"loss_means.{k}": v for k, v in self.cycle.means.state_dict().items()}
        average = pack_weights("average", self.roles.average.module)
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
        unpack_weights("average", self.roles.average.module, tensors)
        self.cycle.means.load_state_dict({k: tensors[f"loss_means.{k}"] for k in ("mean", "seen")})
        self.video_order.load_state_dict(state["video_order"])
        self.prompt_order.load_state_dict(state["prompt_order"])
        self.roll_backs = state["roll_backs"]
        if self.monitor is not None and state["monitors"] is not None:  # it may have been switched on since
            self.monitor.load_state_dict(state["monitors"])

    def export(self, folder: Path) -> None:
        """`student/`: the averaged student with how it is to be sampled; a diffusers folder, or a LoRA for its base."""
        recipe = self.recipe
        merged = recipe.roles == "full" or recipe.adapters.merge
        weights = self.roles.export_average() if merged else self.roles.export_adapter()
        if not self.ranks.is_main:
            return
        rollout = recipe.rollout
        sampling = {"student_timesteps": rollout.timesteps, "half_rate_stages": rollout.half_rate_stages}
        with atomic_folder(folder / "student") as student:
            save = self.model.save if merged else self.model.save_adapter
            save(student, weights, **sampling)
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


class RunSampler:
    """See `training.monitors.Studio`: videos of the networks of a run."""

    def __init__(self, task: DistillTask) -> None:
        self._task, self._device = task, task.ranks.device

    @torch.no_grad()
    def student(self, noise: Tensor, prompts: Conditions, renoise: Renoise) -> Tensor:
        network, device = self._task.roles.average.module, self._device
        return self._task.rollout(
            network, noise.to(device), prompts.to(device), lambda stage: renoise(stage).to(device)
        ).cpu()

    def teacher(self, noise: Tensor, prompts: Conditions, steps: int | None) -> Tensor:
        settings, null_prompt = self._task.model.settings, self._task.cycle.null_prompt
        return sample_teacher(
            self._task.roles.teacher,
            noise.to(self._device),
            prompts.to(self._device),
            null_prompt,
            steps=settings.steps if steps is None else steps,
            guidance=settings.guidance,
            shift=settings.shift,
            solver=make_solver(settings.solver, settings.shift),
        ).cpu()

    def decode(self, latents: Tensor) -> np.ndarray:
        return self._task.model.decode_video(latents)


def falls_in_share(n: int, share: float) -> bool:
    """Whether event `n` is one of an evenly spread `share` of all events; over n events they are floor(n share)."""
    return math.floor((n + 1) * share) > math.floor(n * share)


def check_sequences(lengths: set[int], sharers: int) -> None:
    """Raise UserError unless `sharers` ranks can share sequences of these lengths equally."""
    if any(length % sharers for length in lengths):
        told = " and ".join(str(length) for length in sorted(lengths, reverse=True))
        raise UserError(
            f"clips are sequences of {told} tokens, which compute.context={sharers} does not divide: choose another"
        )


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
