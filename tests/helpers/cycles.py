"""Cycles of distillation over tiny networks."""

from __future__ import annotations

import torch
from torch import nn

from avd.config import Recipe, load_recipe
from avd.distillation.roles import Roles
from avd.distillation.step import Batch, Cycle
from avd.engine.randomness import UpdateRandom
from avd.engine.ranks import SINGLE_PROCESS, Ranks
from avd.flow import few_step_sigmas
from avd.sampling.rollout import Rollout, make_stages
from helpers.tiny import tiny_interpolator, tiny_model, tiny_source

BATCH = 3
MODEL = tiny_model()
INTERPOLATOR = tiny_interpolator().eval().requires_grad_(False)
TRUNCATION = -10.0
"""Far below the loss of random latents: the temporal term acts."""


def make_cycle(*overrides: str, together: bool = False, ranks: Ranks = SINGLE_PROCESS) -> Cycle:
    """A cycle whose networks have parted ways, or are all the teacher, together, as at the start of a run."""
    recipe = load_recipe("avd", [f"training.batch={BATCH}", *overrides])
    stages = make_stages(few_step_sigmas(recipe.rollout.timesteps), recipe.rollout.half_rate_stages)
    roles = Roles(tiny_model(), recipe, ranks)
    if not together:
        _part_ways(roles)
    return Cycle(recipe, roles, Rollout(stages, INTERPOLATOR), MODEL.encode_prompts([""]), TRUNCATION, ranks)


def _part_ways(roles: Roles) -> None:
    """Networks that start equal would hide which of them was asked."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for network in (roles.student.network, roles.fake_score.network, roles.average.module):
            for p in network.parameters():
                p += 0.05 * torch.randn(p.shape, generator=generator)


def networks(cycle: Cycle) -> dict[str, nn.Module]:
    roles = cycle.roles
    return {
        "teacher": roles.teacher,
        "student": roles.student.network,
        "fake_score": roles.fake_score.network,
        "average": roles.average.module,
    }


def make_batch(recipe: Recipe) -> Batch:
    """Random clips; each rollout has prompts of its own, other than the clips'."""
    source = tiny_source(MODEL, count=8)
    rollouts = 1 if recipe.rollout.shared else recipe.fake_score.updates
    prompts = tuple(source.prompts([(BATCH + i + j) % 8 for j in range(BATCH)]) for i in range(rollouts))
    return Batch(source.latents(range(BATCH)), source.prompts(range(BATCH)), prompts)


def draws(update: int = 0, seed: int = 0, count: int = BATCH) -> UpdateRandom:
    return UpdateRandom(seed, update, range(count))


def draws_for_exit(stage: int, stages: int = 4) -> UpdateRandom:
    """UpdateRandom that send a rollout to `stage`."""
    return next(d for d in map(draws, range(1000)) if d.shared_integer("rollout", 0, "exit", high=stages) == stage)
