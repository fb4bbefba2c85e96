"""The network passes of one cycle, and what they cost: `training.cycle`, counted without running it.

Exits are uniform over the stages, so stage i of S runs before the exit in (S - 1 - i) / S of the rollouts and is the
exit in 1 / S. A backward counts as two forwards, blocks that are computed again as the share of one that they are, and
a half-rate stage as a whole one; operations are counted for what each really is. The interpolator is left out: it takes
less than a thousandth of a large network.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from avd.config import Recipe
from avd.flow import few_step_sigmas
from avd.models.sizes import Sizes
from avd.planning.flops import Flops, flops_of
from avd.sampling.rollout import make_stages


@dataclass(frozen=True)
class Work:
    """One kind of pass of a cycle, for one clip: forwards on average, at least and at most, and operations."""

    name: str
    forwards: float
    least: float
    most: float
    flops: float


@dataclass(frozen=True)
class _Costs:
    """A clip's forward of each role, at a stride, and how much of one a backward repeats."""

    bare: Callable[[int], Flops]
    trained: Callable[[int], Flops]
    again: float
    blocks: Callable[[int], float]
    """Operations of all blocks, of which checkpointing repeats a share."""

    def learn(self, stride: int) -> float:
        """Forward and backward."""
        flops = self.trained(stride)
        return flops.forward + flops.backward + self.again * self.blocks(stride)


def work_of(recipe: Recipe, sizes: Sizes, *, in_parts: bool) -> list[Work]:
    """Of a cycle, for each clip of the batch. `in_parts`: a rank's clips go through the networks in several."""
    costs, objective, rollout = _costs(recipe, sizes), recipe.objective, recipe.rollout
    stages = len(rollout.timesteps)
    matched = bool(objective.distribution_matching.weight)
    judged = matched or bool(objective.temporal.weight)
    rollouts = 1 if rollout.shared else recipe.fake_score.updates
    learning = 3 + costs.again

    def forward(stride: int) -> float:
        return costs.trained(stride).forward

    before = _over_stages(recipe, lambda i, stride: (stages - 1 - i) / stages * forward(stride))
    at_exit = _over_stages(recipe, lambda _, stride: forward(stride) / stages)
    learning_at_exit = _over_stages(recipe, lambda _, stride: costs.learn(stride) / stages)
    mean, most = rollouts * (stages - 1) / 2, rollouts * (stages - 1)
    found = [Work("rollouts, before the exit", mean, 0, most, rollouts * before)]
    plain = rollouts - 1 + (0 if judged and not in_parts else 1)
    if plain:
        found.append(_fixed("rollouts, exit without gradient", plain, plain * at_exit))
    if judged:
        found.append(_fixed("student at the exit", learning, learning_at_exit))
    if matched:
        branches = 1 if objective.distribution_matching.standard_guidance == 1.0 else 2
        found.append(_fixed("teacher with guidance", branches, branches * costs.bare(1).forward))
        found.append(_fixed("fake score, matching", 1, forward(1)))
    if objective.regression.weight:
        found.append(_fixed("student's regression", learning, learning_at_exit))  # strides are drawn as an exit's
    updates = recipe.fake_score.updates
    found.append(_fixed(f"fake score, {updates} updates", updates * learning, updates * costs.learn(1)))
    return found


def _costs(recipe: Recipe, sizes: Sizes) -> _Costs:
    adapters = recipe.adapters if recipe.roles == "adapters" else None
    again = {"none": 0.0, "selective": ((sizes.layers + 1) // 2) / sizes.layers, "full": 1.0}

    def blocks(stride: int) -> float:
        without = replace(sizes, layers=0)
        return flops_of(sizes, stride, adapters).forward - flops_of(without, stride).forward

    return _Costs(
        bare=lambda stride: flops_of(sizes, stride),
        trained=lambda stride: flops_of(sizes, stride, adapters),
        again=again[recipe.compute.checkpointing],
        blocks=blocks,
    )


def _over_stages(recipe: Recipe, of: Callable[[int, int], float]) -> float:
    """The sum over stages of `of`(stage, stride), over cycles with half-rate stages and without."""

    def total(half_rate_stages: int) -> float:
        stages = make_stages(few_step_sigmas(recipe.rollout.timesteps), half_rate_stages)
        return sum(of(i, stage.frame_stride) for i, stage in enumerate(stages))

    share = recipe.rollout.half_rate_share
    return share * total(recipe.rollout.half_rate_stages) + (1 - share) * total(0)


def _fixed(name: str, forwards: float, flops: float) -> Work:
    return Work(name, forwards, forwards, forwards, flops)
