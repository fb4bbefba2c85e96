"""Distil a teacher into a few-step student: the task that `engine.loop` runs."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from avd.config import Recipe
from avd.distillation.data import RunData
from avd.distillation.interpolating import TrainedInterpolator, saved_interpolator
from avd.distillation.reading import BatchReader
from avd.distillation.roles import Roles
from avd.distillation.sampler import RunSampler
from avd.distillation.saved_student import saved_streams
from avd.distillation.starts import Starts
from avd.distillation.step import TrainingStep
from avd.engine.checkpoint import SavedTensors
from avd.engine.loop import UpdateResult
from avd.engine.preview import write_preview
from avd.engine.randomness import UpdateRandom, derive_seed
from avd.engine.ranks import SINGLE_PROCESS, Ranks
from avd.engine.stopping import Between, one_part
from avd.export import format_named
from avd.export.format import Student
from avd.export.writing import write
from avd.flow import TIMESTEPS, few_step_sigmas
from avd.methods.method import Method
from avd.models.experts import join_streams
from avd.models.family import TextToVideo
from avd.models.interpolator import FrameInterpolator
from avd.models.settings import Settings
from avd.models.streams import TensorStream
from avd.models.weights import Weights, read_tensor
from avd.objectives.term import Setting
from avd.sampling.rollout import Rollout, make_stages

_PREVIEWS = 4


class DistillTask:
    """See `engine.loop.Task`. One update is one `TrainingStep`.

    Real clips and the rollouts' prompts come from `data`, each in their own shuffled order. `starts` is what the roles
    begin as; None: all as the model. `interpolator` is needed for stages at half rate or resolution. Every rank has all
    data and reads its own samples of each batch. That all of it fits together, `distillation.preflight` has seen to.
    """

    def __init__(
        self,
        recipe: Recipe,
        model: TextToVideo,
        data: RunData,
        interpolator: FrameInterpolator | None,
        ranks: Ranks = SINGLE_PROCESS,
        starts: Starts | None = None,
    ) -> None:
        self.recipe, self.model, self.data, self.interpolator = recipe, model, data, interpolator
        self.ranks, self.samples = ranks, ranks.samples(recipe.training.batch)
        self.method = Method.of(recipe)
        strided = recipe.rollout.strided_stages
        assert not any(strided) or interpolator is not None, "see `distillation.preflight`"
        self.unconditional = data.unconditional.to(ranks.device)
        self.roles = Roles(starts or Starts.alike(model, self.method), recipe, self.method, ranks)
        self.learning: TrainedInterpolator | None = None
        """The interpolator, if it is trained."""
        if interpolator is not None and recipe.rollout.interpolator == "trained":
            self.learning = TrainedInterpolator(interpolator, recipe, ranks)
            self.interpolator = self.learning.average
        elif interpolator is not None:
            interpolator.eval().requires_grad_(False).to(ranks.device)
        self._full_rollout = trained_rollout(recipe, None, strided=False)
        self.rollout = trained_rollout(recipe, interpolator)
        self._sampled_rollout = Rollout(self.rollout.stages, self.interpolator, recipe.rollout.transition)
        """To a clean video: of an expert of high noise by itself the blurred one that its last stage predicts."""
        self.step = TrainingStep(
            self.method,
            self.roles,
            self.unconditional,
            self._setting(),
            microbatch=recipe.compute.microbatch,
            ranks=ranks,
        )
        self.reader = BatchReader(data, self.method, len(self.samples), recipe.seed, ranks)
        self.roll_backs = 0
        """How often the run was sent back; decides the noise from there on."""

    def sampler(self) -> RunSampler:
        """Videos of the networks as they are trained."""
        return RunSampler(self.model, self.roles, self._sampled_rollout, self.unconditional)

    def update(self, n: int, between: Between = one_part) -> UpdateResult:
        strided = falls_in_share(n, self.recipe.rollout.half_rate_share)
        batch = self.reader.next()
        seed = self.recipe.seed
        if self.roll_backs:
            seed = derive_seed(seed, "roll-back", self.roll_backs)
        random = UpdateRandom(seed, n, self.samples, self.ranks.device)
        result = self.step.run(batch, random, self.rollout if strided else self._full_rollout, between)
        if self.learning is not None:
            result.metrics |= self.learning.step()
        return result

    def validate(self, n: int) -> dict[str, float]:
        """Nothing: what a run measures of itself, its monitors measure."""
        return {}

    @torch.no_grad()
    def sample(self, folder: Path, n: int) -> None:
        """The averaged student on the first prompts of the data, from fixed noise, side by side in one video.

        As many clips at once as training computes, and decoded one by one: samples need no more memory than it does.
        """
        count, sampler, seed = min(_PREVIEWS, len(self.data.prompts)), self.sampler(), self.recipe.seed
        size, videos = min(self.recipe.compute.microbatch or len(self.samples), len(self.samples)), []
        for start in range(0, count, size):
            clips = range(start, min(start + size, count))
            random = UpdateRandom(derive_seed(seed, "preview"), 0, clips)
            normal = partial(random.normal, shape=self.data.latent_CFHW)
            latents = sampler.student(normal("start"), self.data.prompts.prompts(list(clips)), normal)
            if self.ranks.is_main:
                videos += [sampler.decode(latent) for latent in latents.split(1)]
        if self.ranks.is_main:
            write_preview(folder / f"update-{n:06d}.mp4", np.concatenate(videos), self.model.settings.fps)
        sampler.rest()

    def tensors(self) -> dict[str, Tensor]:
        learning = {} if self.learning is None else self.learning.tensors()
        return self.roles.tensors() | self.step.tensors() | learning

    def average_tensors(self) -> dict[str, Tensor]:
        """What the averaged student is made of."""
        learning = {} if self.learning is None else self.learning.average_tensors()
        return self.roles.average.tensors() | learning

    def state(self) -> dict[str, Any]:
        return {
            **self.roles.state(),
            **self.reader.state_dict(),
            "roll_backs": self.roll_backs,
            **({} if self.learning is None else self.learning.state()),
        }

    def load(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        self.roles.load(tensors, state)
        self.step.load(tensors)
        if self.learning is not None:
            self.learning.load(tensors, state)
        self.reader.load_state_dict(state)
        self.roll_backs = state["roll_backs"]

    def export(self, folder: Path) -> None:
        """`student/`: the averaged student with how it is to be sampled; a diffusers folder, or a LoRA for its base."""
        weights, adapter = self.roles.average_stream(), None
        if self.roles.starts.high is not None:
            weights = join_streams(self._read(self.roles.starts.high.weights), weights)
        elif self.recipe.roles == "adapters":
            adapter = self.roles.adapter_stream()
        self._write(self._student(weights, adapter, self.interpolator), folder)

    def export_saved(self, tensors: SavedTensors, folder: Path) -> None:
        """The same of the averaged student in a checkpoint of this run. For the first rank alone."""
        weights, adapter = saved_streams(self.recipe, tensors, self.model, self.roles.starts.high)
        interpolator = saved_interpolator(self.recipe, tensors, copy.deepcopy(self.interpolator))
        self._write(self._student(weights, adapter, interpolator), folder)

    @property
    def student_settings(self) -> Settings:
        """How the student is sampled."""
        rollout = self.recipe.rollout
        return replace(
            self.model.settings,
            student_timesteps=rollout.timesteps[: self.recipe.trained_stages.stop],
            half_rate_stages=rollout.half_rate_stages,
            transition=rollout.transition,
            half_resolution_stages=rollout.half_resolution_stages,
            high_stages=self.method.stages_before,
            end_timestep=self.recipe.end_timestep,
        )

    def _read(self, weights: Weights) -> TensorStream:
        """Weights that the first rank reads, and no other."""
        main = self.ranks.is_main
        return TensorStream(weights.shapes, lambda name: read_tensor(weights, name) if main else None)

    def _student(
        self, weights: TensorStream, adapter: TensorStream | None, interpolator: FrameInterpolator | None
    ) -> Student:
        return Student(self.model, weights, adapter, asdict(self.student_settings), interpolator)

    def _write(self, student: Student, folder: Path) -> None:
        lora = student.adapter is not None and not self.recipe.adapters.merge
        write(format_named("lora" if lora else "diffusers"), folder / "student", student, main=self.ranks.is_main)

    def _setting(self) -> Setting:
        return Setting(
            sigmas=few_step_sigmas(self.recipe.trained_timesteps),
            real_latents=self._first_latents,
            all_sum=self.ranks.all_sum,
            global_mean=self.ranks.global_mean,
        )

    def _first_latents(self, count: int) -> Tensor:
        assert self.data.clips is not None, "see `distillation.preflight`"
        return self.data.clips.latents(list(range(min(count, len(self.data.clips)))))


def trained_rollout(recipe: Recipe, interpolator: FrameInterpolator | None, *, strided: bool = True) -> Rollout:
    """The path of a recipe's student in training, with its strided stages or with full ones alone; it exits at the
    stages that the student learns."""
    stages = make_stages(few_step_sigmas(recipe.rollout.timesteps), *(recipe.rollout.strided_stages if strided else ()))
    trained, end = recipe.trained_stages, recipe.end_timestep / TIMESTEPS
    return Rollout(stages[: trained.stop], interpolator, recipe.rollout.transition, trained=trained, end=end)


def falls_in_share(n: int, share: float) -> bool:
    """Whether event `n` is one of an evenly spread `share` of all events; over n events they are floor(n share)."""
    return math.floor((n + 1) * share) > math.floor(n * share)
