"""Adapters at a full model's learning rate are pointed out, with rates that are not."""

from __future__ import annotations

import pytest
import torch

from avd.config import Recipe, load_recipe, shipped_recipes
from avd.methods.adapter_rates import ADAPTER_RATE, adapter_rates, explain_low_rates
from helpers.cycles import make_batch, make_cycle, update_random

WAN = "avd-wan2.1-1.3b"


def test_the_rates_of_a_full_models_recipe_are_too_low_and_those_named_are_not() -> None:
    recipe = load_recipe(WAN, ["roles=adapters"])
    line = explain_low_rates(recipe)
    assert line is not None and "\n" not in line
    assert "student.optimizer.learning_rate is 2e-06" in line and "fake_score.optimizer.learning_rate is 2e-06" in line
    changes = [word for word in line.split() if "=" in word]
    assert explain_low_rates(load_recipe(WAN, ["roles=adapters", *changes])) is None


def test_only_what_is_too_low_is_named() -> None:
    line = explain_low_rates(load_recipe(WAN, ["roles=adapters", "student.optimizer.learning_rate=1e-4"]))
    assert line is not None and "student" not in line.replace("fake_score", "")
    alone = ["roles=adapters", "objective.distribution_matching.weight=0", "objective.temporal.weight=0"]
    line = explain_low_rates(load_recipe(WAN, alone))
    assert line is not None and "fake_score" not in line  # there is none without distribution matching


@pytest.mark.parametrize("name", shipped_recipes())
def test_no_shipped_recipe_is_at_fault(name: str) -> None:
    assert explain_low_rates(load_recipe(name)) is None


def test_the_rates_for_adapters_are_a_multiple_of_the_recipes_own() -> None:
    changes = ["student.optimizer.learning_rate=3e-6", "fake_score.optimizer.learning_rate=4e-6"]
    expected = {"student.optimizer.learning_rate": 3e-5, "fake_score.optimizer.learning_rate": 4e-5}
    assert adapter_rates(load_recipe(WAN, changes)) == expected


def test_adapters_decay_only_if_changed() -> None:
    """Neither a warm start's nor a learnt direction is pulled back: an adapter without a gradient stays as it is."""
    full, adapters = load_recipe("avd"), load_recipe("avd", ["roles=adapters"])
    assert {each.optimizer.weight_decay for each in (full.student, full.fake_score)} == {0.01}
    assert {each.optimizer.weight_decay for each in (adapters.student, adapters.fake_score)} == {0.0}
    changed = load_recipe("avd", ["roles=adapters", "student.optimizer.weight_decay=0.1"])
    assert (changed.student.optimizer.weight_decay, changed.fake_score.optimizer.weight_decay) == (0.1, 0.0)
    again = Recipe.model_validate(changed.model_dump(mode="json"))
    assert again == changed


@pytest.mark.parametrize(("decay", "same"), [("null", True), ("0.5", False)])
def test_weight_decay_reaches_the_optimizer(decay: str, same: bool) -> None:
    changes = ("roles=adapters", "adapters.rank=4", "student.optimizer.learning_rate=1e-2")
    cycle = make_cycle(*changes, f"student.optimizer.weight_decay={decay}")
    student = cycle.roles.student
    before = [p.detach().clone() for p in student.network.parameters()]
    for parameter in student.network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    student.step()
    assert all(torch.equal(p, q) for p, q in zip(student.network.parameters(), before, strict=True)) == same


def test_ten_times_the_rate_moves_adapters_as_far_as_full_models() -> None:
    """On a tiny network of random weights, to a factor of three; the same rate does not."""

    def moved(*changes: str) -> float:
        cycle = make_cycle(*changes, "student.optimizer.warmup=0", together=True)
        batch = make_batch(cycle.recipe)
        network = cycle.roles.student.network
        x, sigma = batch.latents_BCFHW, torch.full((len(batch.latents_BCFHW),), 0.8)
        with torch.no_grad():
            before = network(x, sigma, batch.prompts)
            for n in range(3):
                with torch.enable_grad():
                    cycle.run(batch, update_random(n))
            return float((network(x, sigma, batch.prompts) - before).square().mean().sqrt())

    adapters = ("roles=adapters", "adapters.rank=8", "adapters.alpha=8")
    rates = [f"{role}.optimizer.learning_rate={ADAPTER_RATE * 2e-4}" for role in ("student", "fake_score")]
    full, same, faster = moved(), moved(*adapters), moved(*adapters, *rates)
    assert same < full / 3
    assert full / 3 < faster < 3 * full
