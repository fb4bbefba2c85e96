"""The cheapest change that makes a recipe fit, found by planning each.

Changes are tried in tiers, of which the first that holds one that fits ends the search:

1. how the run is computed, which only rounds differently: `compute.shard`, `microbatch`, `checkpointing`, `dtype`;
2. with optimizer moments of 8 bits;
3. with adapters, at rates of their own, which learn less than full models do;
4. with more GPUs, their number doubled as often as the batch can be spread over them.

Within a tier the cheapest takes the least time per update; among equals, the fewest changes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from avd.config import Recipe
from avd.methods.adapter_rates import adapter_rates
from avd.models.sizes import Sizes
from avd.planning.plan import Machine, Plan, Planner

_EIGHT_BITS = {"student.optimizer.bits": 8, "fake_score.optimizer.bits": 8}


@dataclass(frozen=True)
class Remedy:
    """Values to set, by dotted key, the number of GPUs if that is to change, and the plan that comes of it."""

    changes: dict[str, Any]
    gpus: int | None
    plan: Plan


def find_remedy(planner: Planner, recipe: Recipe, machine: Machine) -> Remedy | None:
    """The cheapest change after which `recipe` fits `machine`; None if none of those tried does."""
    for tier in _tiers(planner.sizes, recipe, machine):
        remedies = []
        for changes, gpus in tier:
            changed = Recipe.model_validate(_with(recipe.model_dump(), changes))
            plan = planner.plan(changed, replace(machine, gpus=gpus))
            remedies.append(Remedy(changes, None if gpus == machine.gpus else gpus, plan))
        for remedy in sorted(remedies, key=lambda remedy: (remedy.plan.seconds, len(remedy.changes))):
            if remedy.plan.fits:
                return remedy
    return None


_Candidate = tuple[dict[str, Any], int]


def _tiers(sizes: Sizes, recipe: Recipe, machine: Machine) -> Iterator[list[_Candidate]]:
    gpu = recipe.compute.device != "cpu"
    bits = [_EIGHT_BITS] if gpu else []
    largest = sizes.largest_rank(recipe.adapters.targets)
    narrow = largest is None or recipe.adapters.rank <= largest
    adapters: list[dict[str, Any]] = []
    if recipe.roles == "full" and narrow:
        adapters = [{"roles": "adapters", **adapter_rates(recipe)}]
    computed = list(_computed(recipe, machine.gpus))
    yield [(changes, machine.gpus) for changes in computed if changes]
    yield [({**a, **b}, machine.gpus) for a, b in product(computed, bits)]
    yield [({**a, **b, **c}, machine.gpus) for a, b, c in product(computed, [{}, *bits], adapters)]
    gpus = 2 * machine.gpus
    while recipe.training.batch * recipe.compute.context % gpus == 0:
        kinds: list[list[dict[str, Any]]] = [[{}], bits, adapters]
        for extra in kinds:
            yield [({**a, **b}, gpus) for a, b in product(_computed(recipe, gpus), extra)]
        gpus *= 2


def _computed(recipe: Recipe, gpus: int) -> Iterator[dict[str, Any]]:
    """Changes of the section `compute`, each alone and together, and no change."""
    compute, clips = recipe.compute, recipe.training.batch * recipe.compute.context // gpus
    part = min(compute.microbatch or clips, clips)
    parts = [None, *(n for n in range(part - 1, 0, -1) if clips % n == 0)]
    modes = ["none", "selective", "full"]
    again = modes[modes.index(compute.checkpointing) + 1 :]
    shard = [{"compute.shard": None}] if compute.shard not in (None, gpus) else []
    dtype = [{"compute.dtype": "bfloat16"}] if compute.dtype == "float32" and compute.device != "cpu" else []
    for a, b, n, c in product([{}, *shard], [{}, *dtype], parts, [None, *again]):
        yield {
            **a,
            **b,
            **({} if n is None else {"compute.microbatch": n}),
            **({} if c is None else {"compute.checkpointing": c}),
        }


def _with(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    for key, value in changes.items():
        section = values
        *path, last = key.split(".")
        for part in path:
            section = section[part]
        section[last] = value
    return values
