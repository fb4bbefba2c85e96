"""What the network passes cost that a method declares for one cycle, on average over cycles.

A stage runs before the exit in the share of the rollouts that exit later, and is the exit in its own share
(`methods.exits`). A backward counts as two forwards, one to the input alone as one, blocks that are computed again as
the share of one that they are, and a stage at half rate or resolution as a full one; operations are counted for what
each really is. The interpolator is left out: it takes less than a thousandth of a large network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from avd.config import Recipe
from avd.flow import few_step_sigmas
from avd.methods.exits import Exits
from avd.methods.method import Method
from avd.models.sizes import Sizes
from avd.objectives.passes import Pass
from avd.planning.flops import Flops, flops_of
from avd.sampling.rollout import FULL, Strides, make_stages


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
    """A clip's forward of each role, at strides, and how much of one a backward repeats."""

    bare: Callable[[Strides], Flops]
    trained: Callable[[Strides], Flops]
    again: float
    blocks: Callable[[Strides], float]
    """Operations of all blocks, of which checkpointing repeats a share."""

    def learn(self, strides: Strides) -> float:
        """Forward and backward."""
        flops = self.trained(strides)
        return flops.forward + flops.backward + self.again * self.blocks(strides)

    def to_input(self, flops: Flops, strides: Strides) -> float:
        """Forward and backward to the input."""
        return flops.forward + flops.input_backward + self.again * self.blocks(strides)


def work_of(recipe: Recipe, sizes: Sizes, others: Mapping[str, Sizes], *, in_parts: bool) -> list[Work]:
    """The passes of a cycle, per clip of the batch. `in_parts`: a rank's clips go through the networks in several.

    `others` are the sizes of the networks that differ from the student's, by the name of their role.
    """
    all_costs, stages = {name: _costs(recipe, each) for name, each in others.items()}, len(recipe.trained_stages)
    own = _costs(recipe, sizes)
    found = []
    method = Method.of(recipe)
    for each in method.mean_passes(in_parts=in_parts):
        costs = all_costs.get(each.network, own)
        forwards = 1 + each.backward + (costs.again if each.backward else 0)
        least, mean, most = (
            each.count * forwards * (exit if each.place == "before_exit" else 1)
            for exit in (method.exits.first, method.exits.mean(stages), stages - 1)
        )
        found.append(Work(each.name, mean, least, most, each.count * _flops(recipe, method.exits, each, costs)))
    return found


def _flops(recipe: Recipe, exits: Exits, which: Pass, costs: _Costs) -> float:
    """Operations of one clip where the pass runs once per rollout."""

    def once(strides: Strides) -> float:
        if which.learns:
            return costs.learn(strides)
        flops = (costs.bare if which.network in ("teacher", "high_expert") else costs.trained)(strides)
        return costs.to_input(flops, strides) if which.to_input else flops.forward

    if which.place == "before_exit":
        return _over_stages(recipe, exits, lambda i, strides, shares: sum(shares[i + 1 :]) * once(strides))
    if which.place == "exit":
        return _over_stages(recipe, exits, lambda i, strides, shares: shares[i] * once(strides))
    return once(FULL)


def _costs(recipe: Recipe, sizes: Sizes) -> _Costs:
    adapters = recipe.adapters if recipe.roles == "adapters" else None
    again = {"none": 0.0, "selective": ((sizes.layers + 1) // 2) / sizes.layers, "full": 1.0}

    def blocks(strides: Strides) -> float:
        without = replace(sizes, layers=0)
        return flops_of(sizes, strides, adapters).forward - flops_of(without, strides).forward

    return _Costs(
        bare=lambda strides: flops_of(sizes, strides),
        trained=lambda strides: flops_of(sizes, strides, adapters),
        again=again[recipe.compute.checkpointing],
        blocks=blocks,
    )


def _over_stages(recipe: Recipe, exits: Exits, of: Callable[[int, Strides, tuple[float, ...]], float]) -> float:
    """The sum over stages of `of`(stage, strides, shares of exits), over cycles with strided stages and without."""
    rollout = recipe.rollout

    def total(*strided_stages: int) -> float:
        path = make_stages(few_step_sigmas(rollout.timesteps), *strided_stages)
        stages = [path[own] for own in recipe.trained_stages]
        shares = exits.shares(len(stages), strided=any(strided_stages))
        return sum(of(i, stage.strides, shares) for i, stage in enumerate(stages))

    share = rollout.half_rate_share
    return share * total(*rollout.strided_stages) + (1 - share) * total()
