"""Training steps of distillation over tiny networks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from avd.config import Recipe, load_recipe
from avd.distillation.roles import Network, Roles
from avd.distillation.starts import Starts
from avd.distillation.step import Batch, TrainingStep
from avd.distillation.task import trained_rollout
from avd.engine.loop import UpdateResult
from avd.engine.randomness import UpdateRandom
from avd.engine.ranks import SINGLE_PROCESS, Ranks
from avd.methods.method import Method
from avd.objectives.adaptive_regression import LossMeans, Regression
from avd.objectives.term import Setting
from avd.sampling.rollout import Rollout
from helpers.tiny import LATENT_SHAPE, tiny_interpolator, tiny_model, tiny_source

BATCH = 3
MODEL = tiny_model()
INTERPOLATOR = tiny_interpolator().eval().requires_grad_(False)


@dataclass
class Cycle:
    """A training step with what it is run with."""

    recipe: Recipe
    step: TrainingStep
    rollout: Rollout

    @property
    def roles(self) -> Roles:
        return self.step.roles

    @property
    def means(self) -> LossMeans:
        """The loss cache of the adaptive regression."""
        term = self.step.terms["regression"]
        assert isinstance(term, Regression) and term.means is not None
        return term.means

    def run(self, batch: Batch, random: UpdateRandom) -> dict[str, float]:
        return self.step.run(batch, random, self.rollout).metrics

    def update_student(self, batch: Batch, random: UpdateRandom) -> tuple[list[Tensor], dict[str, float]]:
        result = UpdateResult()
        return self.step._update_student(batch, random, self.rollout, result), result.metrics

    def update_fake_score(self, samples: list[Tensor], batch: Batch, random: UpdateRandom, i: int) -> None:
        self.step._update_auxiliary("fake_score", samples, batch, 0, random, i, UpdateResult())


def make_cycle(*overrides: str, together: bool = False, ranks: Ranks = SINGLE_PROCESS, recipe: str = "avd") -> Cycle:
    """A cycle whose networks have parted ways, or are all the teacher, together, as at the start of a run."""
    resolved = load_recipe(
        recipe, [f"training.batch={BATCH}", "objective.temporal.truncation=-10", *overrides]
    )  # the temporal term acts
    rollout = trained_rollout(resolved, INTERPOLATOR)
    model, method = tiny_model(), Method.of(resolved)
    roles = Roles(Starts.alike(model, method), resolved, method, ranks)
    if not together:
        _part_ways(roles)
    source = tiny_source(MODEL)
    setting = Setting(
        sigmas=tuple(rollout.stages[i].sigma for i in rollout.trained),
        real_latents=lambda count: source.latents(range(min(count, len(source)))),
        all_sum=ranks.all_sum,
        global_mean=ranks.global_mean,
    )
    unconditional, microbatch = MODEL.encode_prompts([""]), resolved.compute.microbatch
    step = TrainingStep(method, roles, unconditional, setting, microbatch=microbatch, ranks=ranks)
    return Cycle(resolved, step, rollout)


def _part_ways(roles: Roles) -> None:
    """Networks that start equal would hide which of them was asked."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for network in _apart(roles).values():
            for p in network.parameters():
                p += 0.05 * torch.randn(p.shape, generator=generator)


def _apart(roles: Roles) -> dict[str, Network]:
    """All networks but the teacher."""
    names = [*roles.learned, *roles.followers]
    return {
        "student": roles.student.network,
        **{name: roles.auxiliary(name) for name in names},
        **{name: heads.network for name, heads in roles.heads.items()},
        "average": roles.average.network,
        **({} if roles.high_expert is None else {"high_expert": roles.high_expert}),
    }


def networks(cycle: Cycle) -> dict[str, Any]:
    return {"teacher": cycle.roles.teacher, **_apart(cycle.roles)}


def make_batch(recipe: Recipe) -> Batch:
    """Random clips; each rollout has prompts of its own, other than the clips', unless the method pairs them."""
    source, method = tiny_source(MODEL, count=8), Method.of(recipe)
    rollouts = method.rollouts
    if method.paired:
        rows = [[(i + j) % 8 for j in range(BATCH)] for i in range(rollouts)]
        clips, captions = tuple(map(source.latents, rows)), tuple(map(source.prompts, rows))
        return Batch(clips[0], captions[0], captions, LATENT_SHAPE, clips)
    prompts = tuple(source.prompts([(BATCH + i + j) % 8 for j in range(BATCH)]) for i in range(rollouts))
    return Batch(source.latents(range(BATCH)), source.prompts(range(BATCH)), prompts, LATENT_SHAPE)


def update_random(update: int = 0, seed: int = 0, count: int = BATCH) -> UpdateRandom:
    return UpdateRandom(seed, update, range(count))


def random_for_exit(stage: int, stages: int = 4, first: int = 0, every: int = 1) -> UpdateRandom:
    """UpdateRandom of the first update, from `first` on and a multiple of `every`, that send a rollout to `stage`."""
    updates = range(first + -first % every, first + 1000, every)
    return next(d for d in map(update_random, updates) if d.shared_integer("rollout", 0, "exit", high=stages) == stage)


def random_for_all(cycle: Cycle, exit_stage: int) -> UpdateRandom:
    """UpdateRandom of an update in which every term of the method acts, and rollouts exit at a stage, or at the
    earliest that the method has if that is later."""
    terms, earliest = cycle.step.method.terms, cycle.step.method.exits.first
    last, every = max(each.section.start for each in terms), math.lcm(*(each.every for each in terms))
    stages = len(cycle.rollout.trained) - earliest
    return random_for_exit(max(exit_stage - earliest, 0), stages, first=last, every=every)
