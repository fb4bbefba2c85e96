"""One cycle of distillation: a student update, then the fake score's updates on what the student makes.

The lean step. The rollout's exit is drawn first and no stage past it is run; the student update's sample serves the
first fake-score update, and with a shared rollout all of them; CFG's two branches go through the teacher in one batch;
the loss terms are backpropagated one after the other, so one network graph lives at a time. With a backward counted as
two forwards, a cycle of 1 + 5 updates on 4 stages costs 24 to 27 forwards with a shared rollout, and 35.5 on average
with a fresh one for each update.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from avd.config import DistributionMatchingRecipe, Recipe
from avd.flow import few_step_sigmas, shift_sigma
from avd.objectives.adaptive_regression import LossMeans, regression
from avd.objectives.distribution_matching import distribution_matching
from avd.objectives.fake_score import fake_score_denoising
from avd.objectives.temporal import temporal_regularization
from avd.sampling.rollout import Rollout
from avd.sampling.teacher import guided
from avd.training.gradients import Pulls
from avd.training.roles import Roles
from avd.types import LossTerm, Velocity


@dataclass(frozen=True)
class Batch:
    """What one cycle reads: real latents with their prompts, and a prompt batch for each rollout."""

    latents_BCFHW: Tensor
    prompts_BLD: Tensor
    rollout_prompts: tuple[Tensor, ...]
    """One (B, L, D) with a shared rollout; else one for each fake-score update, the first also the student's."""


class Cycle:
    """Owns the loss cache; everything else belongs to the roles. `truncation` is the temporal loss's, resolved."""

    def __init__(self, recipe: Recipe, roles: Roles, rollout: Rollout, null_prompt: Tensor, truncation: float) -> None:
        self.recipe, self.roles, self.rollout, self.null_prompt = recipe, roles, rollout, null_prompt
        self.truncation = truncation
        self.sigmas = few_step_sigmas(recipe.rollout.timesteps)
        plain = recipe.objective.regression
        self.means = LossMeans(len(self.sigmas), omega=plain.omega, k=plain.k, order=plain.order)
        self.pulls = Pulls()

    def run(self, batch: Batch, generator: torch.Generator) -> dict[str, float]:
        """One student update and all fake-score updates; returns what to log."""
        sample, figures = self._update_student(batch, generator)
        for i in range(self.recipe.fake_score.updates):
            if i > 0 and not self.recipe.rollout.shared:
                prompt = batch.rollout_prompts[i]
                sample, _ = self._roll_out(prompt, sample.shape[1:], generator, gradient=False)
            prompt = batch.rollout_prompts[0 if self.recipe.rollout.shared else i]
            figures |= self._update_fake_score(sample, prompt, generator)
        skipped = {"skipped_student": self.roles.student.skipped, "skipped_fake_score": self.roles.fake_score.skipped}
        return figures | skipped

    def _update_student(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """Returns the sample it made, detached."""
        objective = self.recipe.objective
        prompt = batch.rollout_prompts[0]
        latent_shape = batch.latents_BCFHW.shape[1:]
        judged = bool(objective.distribution_matching.weight or objective.temporal.weight)
        sample, exit_stage = self._roll_out(prompt, latent_shape, generator, gradient=judged)
        # The two terms on the sample meet in its gradient; the student's graph is then walked once.
        leaf = sample.detach().requires_grad_()
        figures: dict[str, float] = {}
        if objective.distribution_matching.weight:
            term = self._distribution_matching(self.pulls.on_video("distribution_matching", leaf), prompt, generator)
            figures |= self._backward(term, objective.distribution_matching.weight)
        if objective.temporal.weight:
            term = temporal_regularization(self.pulls.on_video("temporal", leaf), truncation=self.truncation)
            figures |= self._backward(term, objective.temporal.weight)
        if judged:
            sample.backward(leaf.grad)
        if objective.regression.weight:
            figures |= self._backward(self._regression(batch, generator), objective.regression.weight)
        norm = self.roles.student.step()
        if math.isfinite(norm):
            self.roles.average.update(self.roles.student.network, self.roles.student.steps - 1)
        figures |= self.pulls.take()
        return leaf.detach(), {"exit_stage": exit_stage, **figures, "student_grad_norm": norm}

    def _update_fake_score(self, sample: Tensor, prompt: Tensor, generator: torch.Generator) -> dict[str, float]:
        term = fake_score_denoising(
            sample,
            fake_score=partial(self._predict, self.roles.fake_score.network, prompt),
            sigma_B=self._score_sigmas(len(sample), generator),
            eps_BCFHW=_noise_like(sample, generator),
        )
        figures = self._backward(term, 1.0)
        return {**figures, "fake_score_grad_norm": self.roles.fake_score.step()}

    def _roll_out(
        self, prompt: Tensor, latent_shape: torch.Size, generator: torch.Generator, *, gradient: bool
    ) -> tuple[Tensor, int]:
        """A sample at full rate, from a random exit stage."""
        exit_stage = int(torch.randint(len(self.sigmas), (), generator=generator))
        noise = torch.randn(len(prompt), *latent_shape, generator=generator)
        student = self.roles.student.network
        sample = self.rollout(student, noise, prompt, generator, exit_stage=exit_stage, gradient=gradient)
        return sample, exit_stage

    def _distribution_matching(self, x: Tensor, prompt: Tensor, generator: torch.Generator) -> LossTerm:
        recipe: DistributionMatchingRecipe = self.recipe.objective.distribution_matching
        return distribution_matching(
            x,
            teacher=lambda noisy, sigma: guided(
                self.roles.teacher, noisy, sigma, prompt, self.null_prompt, recipe.standard_guidance
            ),
            fake_score=partial(self._predict, self.roles.fake_score.network, prompt),
            sigma_B=self._score_sigmas(len(x), generator),
            eps_BCFHW=_noise_like(x, generator),
        )

    def _regression(self, batch: Batch, generator: torch.Generator) -> LossTerm:
        """Each sample at a random student timestep; all of a batch share a stride, as one network call must."""
        stages = self.rollout.stages
        stride = stages[int(torch.randint(len(stages), (), generator=generator))].frame_stride
        choices = torch.tensor([i for i, stage in enumerate(stages) if stage.frame_stride == stride])
        timestep_B = choices[torch.randint(len(choices), (len(batch.latents_BCFHW),), generator=generator)]
        x0 = batch.latents_BCFHW[:, :, ::stride]

        def student(x: Tensor, sigma: Tensor) -> Tensor:
            v = self._predict(self.roles.student.network, batch.prompts_BLD, x, sigma, frame_stride=stride)
            return self.pulls.on_velocity("regression", v, sigma)

        return regression(
            x0,
            student=student,
            sigma_B=torch.tensor(self.sigmas)[timestep_B],
            eps_BCFHW=_noise_like(x0, generator),
            timestep_B=timestep_B,
            means=self.means if self.recipe.objective.regression.adaptive else None,
        )

    def _score_sigmas(self, count: int, generator: torch.Generator) -> Tensor:
        """Noise levels at which scores are compared and the fake score learns: uniform in a range, shifted."""
        recipe = self.recipe.objective.distribution_matching
        uniform = torch.rand(count, generator=generator)
        return shift_sigma(recipe.sigma_min + (recipe.sigma_max - recipe.sigma_min) * uniform, recipe.shift)

    @staticmethod
    def _predict(network: Velocity, prompt: Tensor, x: Tensor, sigma: Tensor, *, frame_stride: int = 1) -> Tensor:
        return network(x, sigma, prompt, frame_stride=frame_stride)

    @staticmethod
    def _backward(term: LossTerm, weight: float) -> dict[str, float]:
        loss = term.per_sample_B.mean()
        (weight * loss).backward()
        return {term.name: loss.item(), **term.figures}


def _noise_like(x: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(x.shape, generator=generator)
