"""What makes a recipe fit: found by trying, and nothing cheaper does."""

from __future__ import annotations

from itertools import product

import pytest

from avd.config import Recipe, load_recipe
from avd.models.family import read_sizes
from avd.planning.fitting import find_remedy
from avd.planning.plan import Machine, Planner

WAN = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
SETTINGS = [f"model={WAN}", "training.batch=8", "compute.dtype=bfloat16"]
"""Two clips on each of four GPUs."""


@pytest.fixture(scope="module")
def planner() -> Planner:
    return Planner(read_sizes(WAN))


def recipe(*overrides: str) -> Recipe:
    return load_recipe("avd", [*SETTINGS, *overrides])


@pytest.mark.parametrize("memory", [200e9, 100e9, 30e9, 25e9])
def test_the_remedy_fits_and_is_the_cheapest_way_to_compute(planner: Planner, memory: float) -> None:
    machine = Machine(4, memory)
    remedy = find_remedy(planner, recipe(), machine)
    assert remedy is not None and remedy.gpus is None and remedy.plan.fits
    assert {key.partition(".")[0] for key in remedy.changes} == {"compute"}
    tried = [
        planner.plan(recipe(f"compute.checkpointing={checkpointing}", f"compute.microbatch={part}"), machine)
        for checkpointing, part in product(("none", "selective", "full"), (1, 2))
    ]
    assert remedy.plan.seconds == min(plan.seconds for plan in tried if plan.fits)
    again = recipe(*(f"{key}={value}" for key, value in remedy.changes.items()))
    assert planner.plan(again, machine).peak == remedy.plan.peak


def test_what_rounds_moments_comes_before_what_learns_less_and_that_before_more_gpus(planner: Planner) -> None:
    """Each budget is just above what the best of a tier takes, and just below what the tier before it does."""
    best = ["compute.checkpointing=full", "compute.microbatch=1"]
    eight = [*best, "student.optimizer.bits=8", "fake_score.optimizer.bits=8"]
    rates = [f"{role}.optimizer.learning_rate=0.002" for role in ("student", "fake_score")]  # 10 times the recipe's
    last = [*eight, "roles=adapters", *rates]

    def needs(overrides: list[str], gpus: int = 4) -> float:
        plan = planner.plan(recipe(*overrides), Machine(gpus))
        return 1.001 * (plan.peak + plan.allowance)

    assert needs(best) > needs(eight) > needs(last) > needs([*last, "training.batch=8"], 8)
    for overrides, changed in ((best, "compute"), (eight, "student"), (last, "roles")):
        remedy = find_remedy(planner, recipe(), Machine(4, needs(overrides)))
        assert remedy is not None and remedy.gpus is None
        assert any(key.startswith(changed) for key in remedy.changes)
        assert {f"{key}={value}" for key, value in remedy.changes.items()} == set(overrides)
    remedy = find_remedy(planner, recipe(), Machine(4, 0.99 * needs(last)))
    assert remedy is not None and remedy.gpus == 8


def test_a_narrow_shard_is_widened(planner: Planner) -> None:
    settings = ["compute.checkpointing=full", "compute.microbatch=1", "compute.shard=1"]
    remedy = find_remedy(planner, recipe(*settings), Machine(4, 40e9))
    assert remedy is not None and remedy.changes == {"compute.shard": None}


@pytest.mark.parametrize("overrides", [[], ["training.batch=24", "compute.microbatch=2"]], ids=str)
def test_there_may_be_no_remedy(planner: Planner, overrides: list[str]) -> None:
    """The second batch is 3 clips on each of 8 GPUs, the last of which goes by itself."""
    assert find_remedy(planner, recipe(*overrides), Machine(4, 4e9)) is None
