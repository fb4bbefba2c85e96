"""Passes of a cycle: the sums of docs/method.md, and the operations of real cycles."""

from __future__ import annotations

import pytest
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from avd.config import AdaptersRecipe
from avd.models.family import read_sizes
from avd.models.wan.sizes import WanSizes
from avd.planning.flops import flops_of
from avd.planning.work import Work, work_of
from helpers.planning_sizes import NEED_NO_GRADIENT
from helpers.real_cycles import make_task, recipe_for
from helpers.tiny import tiny_model

WAN = read_sizes("Wan-AI/Wan2.1-T2V-1.3B-Diffusers")


def planned(*overrides: str, sizes: WanSizes = WAN, in_parts: bool = False) -> list[Work]:
    return work_of(recipe_for(*overrides), sizes, {}, in_parts=in_parts)


def forwards(*overrides: str, in_parts: bool = False) -> tuple[float, float, float]:
    work = planned(*overrides, in_parts=in_parts)
    return sum(w.least for w in work), sum(w.forwards for w in work), sum(w.most for w in work)


def flops(*overrides: str) -> float:
    return sum(part.flops for part in planned(*overrides))


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], (24, 25.5, 27)),
        (["rollout.shared=false"], (28, 35.5, 43)),
        (["rollout.timesteps=[1000]"], (24, 24, 24)),
        (["rollout.half_rate_stages=2"], (24, 25.5, 27)),
        (["fake_score.updates=1"], (12, 13.5, 15)),
        (["objective.regression.weight=0"], (21, 22.5, 24)),
        (["objective.temporal.weight=0"], (24, 25.5, 27)),
        (["objective.distribution_matching.weight=0"], (6, 7.5, 9)),
        (["objective.distribution_matching.weight=0", "objective.temporal.weight=0"], (3, 3, 3)),
        (["objective.distribution_matching.guidance=1"], (23, 24.5, 26)),
        (["objective.distribution_matching.weight=0", "objective.fisher.weight=1"], (25, 26.5, 28)),
        (["compute.checkpointing=full"], (31, 32.5, 34)),
        (["compute.checkpointing=selective"], (27.5, 29, 30.5)),
    ],
    ids=str,
)
def test_forwards_of_a_cycle(overrides: list[str], expected: tuple[float, float, float]) -> None:
    assert forwards(*overrides) == pytest.approx(expected)


def test_in_parts_the_exit_runs_once_more() -> None:
    assert forwards(in_parts=True) == pytest.approx((25, 26.5, 28))


def test_half_rate_stages_are_cheaper_in_their_share_of_cycles() -> None:
    full, half = flops(), flops("rollout.half_rate_stages=2")
    between = flops("rollout.half_rate_stages=2", "rollout.half_rate_share=0.25")
    assert half < full
    assert between == pytest.approx(0.75 * full + 0.25 * half)


def test_adapters_spare_the_gradients_of_the_weights() -> None:
    bare, adapted = flops_of(WAN), flops_of(WAN, adapters=AdaptersRecipe())
    learning, forwards_of_roles = 7, 1.5 + 7 * 3 + 1  # all but the teacher's
    expected = flops() - learning * bare.weights + forwards_of_roles * adapted.adapters
    assert flops("roles=adapters") == pytest.approx(expected)


@pytest.mark.parametrize("checkpointing", ["none", "full"])
def test_operations_are_those_of_a_real_cycle(checkpointing: str) -> None:
    model = tiny_model()
    recipe = recipe_for("training.batch=2", f"compute.checkpointing={checkpointing}")
    task = make_task(recipe, model)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        exit_stage = task.update(0).metrics["exit_stage"]
    sizes = model.sizes
    work = work_of(recipe, sizes, {}, in_parts=False)
    before_exit = exit_stage * flops_of(sizes).forward
    given = sum(layer.flops for layer in sizes.linear_layers() if layer.name in NEED_NO_GRADIENT)
    expected = before_exit + sum(part.flops for part in work if "before the exit" not in part.name) - 7 * given
    assert counter.get_total_flops() == pytest.approx(2 * expected, rel=1e-9)
