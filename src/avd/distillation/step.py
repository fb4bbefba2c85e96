"""One cycle of distillation: a student update, then the fake score's updates on what the student makes.

The lean step. The rollout's exit is drawn first and no stage past it is run; every rank draws the same. The student
update's sample serves the first fake-score update, and with a shared rollout all of them; CFG's two branches go through
the teacher in one batch; the loss terms are backpropagated one after the other, so one network graph lives at a time.
With a backward counted as two forwards, a cycle of 1 + 5 updates on 4 stages costs 24 to 27 forwards with a shared
rollout, and 35.5 on average with a fresh one for each update.

A batch may go through the networks in several parts, whose gradients are gathered: the result is that of the whole.
The exit stage then runs once more, without a graph, as the temporal loss needs the variance of the whole batch before
the first of its gradients.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from avd.config import DistributionMatchingRecipe, Recipe
from avd.distillation.gradients import TermGradients
from avd.distillation.roles import Network, Roles
from avd.engine.randomness import UpdateRandom
from avd.engine.ranks import SINGLE_PROCESS, Ranks
from avd.flow import few_step_sigmas, shift_sigma
from avd.objectives.adaptive_regression import LossMeans, regression
from avd.objectives.distribution_matching import distribution_matching
from avd.objectives.fake_score import fake_score_denoising
from avd.objectives.temporal import temporal_regularization
from avd.sampling.rollout import Rollout
from avd.sampling.teacher import guided
from avd.types import Conditions, LossTerm


@dataclass(frozen=True)
class Batch:
    """What one cycle reads on a rank: real latents with their prompts, and a prompt batch for each rollout."""

    latents_BCFHW: Tensor
    prompts: Conditions
    rollout_prompts: tuple[Conditions, ...]
    """One with a shared rollout; else one for each fake-score update, the first also the student's."""


class Cycle:
    """Owns the loss cache; everything else belongs to the roles. `truncation` is the temporal loss's, resolved."""

    def __init__(
        self,
        recipe: Recipe,
        roles: Roles,
        rollout: Rollout,
        null_prompt: Conditions,
        truncation: float,
        ranks: Ranks = SINGLE_PROCESS,
    ) -> None:
        self.recipe, self.roles, self.rollout, self.null_prompt = recipe, roles, rollout, null_prompt
        self.truncation, self.ranks = truncation, ranks
        self.sigmas = few_step_sigmas(recipe.rollout.timesteps)
        plain = recipe.objective.regression
        self.means = LossMeans(len(self.sigmas), omega=plain.omega, k=plain.k, order=plain.order, reduce=ranks.all_sum)
        self.term_gradients = TermGradients()

    def run(self, batch: Batch, draws: UpdateRandom) -> dict[str, float]:
        """One student update and all fake-score updates; returns what to log, the same on all ranks."""
        samples, metrics = self._update_student(batch, draws)
        for i in range(self.recipe.fake_score.updates):
            fresh = 0 if self.recipe.rollout.shared else i
            if fresh > 0:
                samples = self._roll_out(batch, draws, fresh)
            metrics |= self._update_fake_score(samples, batch.rollout_prompts[fresh], draws, i)
        skipped = {"skipped_student": self.roles.student.skipped, "skipped_fake_score": self.roles.fake_score.skipped}
        return self.ranks.mean_metrics(metrics | skipped)

    def _parts(self, count: int) -> list[slice]:
        """What goes through the networks at once."""
        size = min(self.recipe.compute.microbatch or count, count)
        return [slice(start, min(start + size, count)) for start in range(0, count, size)]

    def _update_student(self, batch: Batch, draws: UpdateRandom) -> tuple[list[Tensor], dict[str, float]]:
        """Returns the samples it made, detached, part by part."""
        objective, student = self.recipe.objective, self.roles.student.network
        judged = bool(objective.distribution_matching.weight or objective.temporal.weight)
        exit_stage, noisy = self._run_until(batch, draws, 0)
        parts, prompt = self._parts(len(draws.samples)), batch.rollout_prompts[0]

        def predict(i: int, gradient: bool) -> Tensor:
            return self.rollout.predict(student, noisy[i], prompt[parts[i]], exit_stage, gradient=gradient)

        whole = len(parts) == 1
        samples = [predict(i, gradient=judged and whole) for i in range(len(parts))]
        # The two terms on the samples meet in their gradient; the student's graph is then walked once.
        leaves = [sample.detach().requires_grad_() for sample in samples]
        metrics: dict[str, float] = {"exit_stage": exit_stage}
        if objective.distribution_matching.weight:
            terms = (
                self._distribution_matching(
                    self.term_gradients.on_video("distribution_matching", leaf), prompt[rows], draws.part(rows)
                )
                for leaf, rows in zip(leaves, parts, strict=True)
            )
            metrics |= self._backward(terms, objective.distribution_matching.weight, parts)
        if objective.temporal.weight:
            samples_BCFHW = torch.cat([self.term_gradients.on_video("temporal", leaf) for leaf in leaves])
            term = temporal_regularization(
                samples_BCFHW, truncation=self.truncation, global_mean=self.ranks.global_mean
            )
            metrics |= self._backward([term], objective.temporal.weight, parts=[slice(0, len(draws.samples))])
        if judged:
            for i, leaf in enumerate(leaves):
                (samples[i] if whole else predict(i, gradient=True)).backward(leaf.grad)
        if objective.regression.weight:
            regressions = (self._regression(batch, draws, rows) for rows in parts)
            metrics |= self._backward(regressions, objective.regression.weight, parts)
            self.means.commit()
        norm = self.roles.student.step()
        if math.isfinite(norm):
            self.roles.average.update(student, self.roles.student.steps - 1)
        metrics |= self.term_gradients.pop_metrics(self.ranks)
        return [leaf.detach() for leaf in leaves], {**metrics, "student_grad_norm": norm}

    def _update_fake_score(
        self, samples: list[Tensor], prompt: Conditions, draws: UpdateRandom, i: int
    ) -> dict[str, float]:
        parts = self._parts(len(draws.samples))

        def term(sample: Tensor, rows: slice) -> LossTerm:
            here = draws.part(rows)
            return fake_score_denoising(
                sample,
                fake_score=partial(_predict, self.roles.fake_score.network, prompt[rows]),
                sigma_B=self._score_sigmas(here, "fake score", i),
                eps_BCFHW=here.normal("fake score", i, "noise", shape=sample.shape[1:]),
            )

        metrics = self._backward((term(*each) for each in zip(samples, parts, strict=True)), 1.0, parts)
        return {**metrics, "fake_score_grad_norm": self.roles.fake_score.step()}

    def _roll_out(self, batch: Batch, draws: UpdateRandom, i: int) -> list[Tensor]:
        """The samples of rollout `i`, at full rate, part by part, without gradient."""
        stage, noisy = self._run_until(batch, draws, i)
        prompt, student = batch.rollout_prompts[i], self.roles.student.network
        return [
            self.rollout.predict(student, x, prompt[rows], stage)
            for x, rows in zip(noisy, self._parts(len(draws.samples)), strict=True)
        ]

    def _run_until(self, batch: Batch, draws: UpdateRandom, i: int) -> tuple[int, list[Tensor]]:
        """The exit stage of rollout `i`, random and the same for the whole batch, and what that stage begins with."""
        stage = draws.shared_integer("rollout", i, "exit", high=len(self.sigmas))
        shape, prompt = batch.latents_BCFHW.shape[1:], batch.rollout_prompts[i]
        noisy = []
        for rows in self._parts(len(draws.samples)):
            normal = partial(draws.part(rows).normal, "rollout", i, shape=shape)
            student = self.roles.student.network
            noisy.append(self.rollout.run_until(student, normal("start"), prompt[rows], normal, stage))
        return stage, noisy

    def _distribution_matching(self, x: Tensor, prompt: Conditions, draws: UpdateRandom) -> LossTerm:
        recipe: DistributionMatchingRecipe = self.recipe.objective.distribution_matching
        return distribution_matching(
            x,
            teacher=lambda noisy, sigma: guided(
                self.roles.teacher, noisy, sigma, prompt, self.null_prompt, recipe.standard_guidance
            ),
            fake_score=partial(_predict, self.roles.fake_score.network, prompt),
            sigma_B=self._score_sigmas(draws, "distribution matching"),
            eps_BCFHW=draws.normal("distribution matching", "noise", shape=x.shape[1:]),
        )

    def _regression(self, batch: Batch, draws: UpdateRandom, rows: slice) -> LossTerm:
        """Each sample at a random student timestep; all of a batch share a stride, as one network call must."""
        stages, here = self.rollout.stages, draws.part(rows)
        stride = stages[draws.shared_integer("regression", "stride", high=len(stages))].frame_stride
        choices = [i for i, stage in enumerate(stages) if stage.frame_stride == stride]
        x0 = batch.latents_BCFHW[rows, :, ::stride]
        choice_B = here.integers("regression", "timestep", high=len(choices))
        timestep_B = torch.tensor(choices, device=x0.device)[choice_B]
        network, prompt = self.roles.student.network, batch.prompts[rows]

        def student(x: Tensor, sigma: Tensor) -> Tensor:
            v = network(x, sigma, prompt, frame_stride=stride)
            return self.term_gradients.on_velocity("regression", v, sigma)

        return regression(
            x0,
            student=student,
            sigma_B=torch.tensor(self.sigmas, device=x0.device)[timestep_B],
            eps_BCFHW=here.normal("regression", "noise", shape=x0.shape[1:]),
            timestep_B=timestep_B,
            means=self.means if self.recipe.objective.regression.adaptive else None,
        )

    def _score_sigmas(self, draws: UpdateRandom, *what: int | str) -> Tensor:
        """Noise levels at which scores are compared and the fake score learns: uniform in a range, shifted."""
        recipe = self.recipe.objective.distribution_matching
        uniform = draws.uniform(*what, "sigma")
        return shift_sigma(recipe.sigma_min + (recipe.sigma_max - recipe.sigma_min) * uniform, recipe.shift)

    def _backward(self, terms: Iterable[LossTerm], weight: float, parts: list[slice]) -> dict[str, float]:
        """Backpropagate a term of a batch that comes in parts, each before the next is made; its mean, and metrics."""
        metrics: dict[str, float] = {}
        for term, rows in zip(terms, parts, strict=True):
            share = (rows.stop - rows.start) / parts[-1].stop
            loss = term.per_sample_B.mean() * share
            # Ranks that share a clip have a part each of its gradient, and all gradients are averaged over ranks.
            (self.ranks.context_size * weight * loss).backward()
            for name, value in {term.name: loss.item(), **{k: v * share for k, v in term.metrics.items()}}.items():
                metrics[name] = metrics.get(name, 0.0) + value
        return metrics


def _predict(network: Network, prompt: Conditions, x: Tensor, sigma: Tensor) -> Tensor:
    return network(x, sigma, prompt)
