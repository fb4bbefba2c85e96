"""Where rollouts exit: shares worked by hand, what is drawn, and what it costs."""

from __future__ import annotations

from collections import Counter

import pytest

from avd.config import load_recipe
from avd.methods.exits import Exits
from avd.methods.method import Method
from avd.planning.work import work_of
from avd.types import UserError
from helpers.cycles import make_batch, make_cycle, update_random
from helpers.planning_sizes import SIZES

BALANCED = Exits(balanced=True, strided_stages=2, strided_share=0.5)


def calls(exits: Exits, stages: int) -> dict[tuple[int, bool], float]:
    """How often the student learns at each stage and rate, over all cycles."""
    found: Counter[tuple[int, bool]] = Counter()
    for strided, cycles in ((True, exits.strided_share), (False, 1 - exits.strided_share)):
        for i, share in enumerate(exits.shares(stages, strided=strided)):
            found[i, strided and i < exits.strided_stages] += cycles * share  # type: ignore[assignment]
    return dict(found)


def test_balanced_exits_train_every_stage_at_every_rate_equally_often() -> None:
    assert BALANCED.shares(4, strided=True) == pytest.approx((1 / 3, 1 / 3, 1 / 6, 1 / 6))
    assert calls(BALANCED, 4) == pytest.approx(dict.fromkeys(calls(BALANCED, 4), 1 / 6))
    uneven = Exits(balanced=True, strided_stages=1, strided_share=0.3)
    assert calls(uneven, 4) == pytest.approx(dict.fromkeys(calls(uneven, 4), 1 / 5))
    uniform = Exits(strided_stages=2, strided_share=0.5)
    assert sorted(calls(uniform, 4).values()) == pytest.approx([1 / 8] * 4 + [1 / 4] * 2)


def test_a_rate_too_rare_to_be_balanced_takes_all_its_cycles() -> None:
    rare = Exits(balanced=True, strided_stages=2, strided_share=0.1)
    assert rare.shares(4, strided=True) == (0.5, 0.5, 0.0, 0.0)
    assert sum(rare.shares(4, strided=False)) == pytest.approx(1)


@pytest.mark.parametrize("strided", [True, False])
def test_what_is_drawn_has_these_shares(strided: bool) -> None:
    exits = Exits(balanced=True, strided_stages=2, strided_share=0.4)
    drawn = Counter(exits.draw(update_random(n), 0, 4, strided=strided) for n in range(2000))
    for i, share in enumerate(exits.shares(4, strided=strided)):
        assert drawn[i] / 2000 == pytest.approx(share, abs=0.035)


def test_uniform_exits_are_the_numbers_they_always_were() -> None:
    for n in range(20):
        random = update_random(n)
        assert Exits().draw(random, 0, 4, strided=False) == random.shared_integer("rollout", 0, "exit", high=4)


def test_the_step_exits_where_the_method_says_and_plans_count_it() -> None:
    changes = ("rollout.exits=balanced", "compute.device=cpu")
    cycle = make_cycle(*changes, recipe="avd-half-rate")
    assert cycle.step.method.exits == BALANCED
    random = update_random(3)
    metrics = cycle.run(make_batch(cycle.recipe), random)
    assert metrics["exit_stage"] == BALANCED.draw(random, 0, 4, strided=True)
    recipe, plain = (load_recipe("avd-half-rate", list(each)) for each in (changes, ()))
    assert BALANCED.mean(4) == pytest.approx(7 / 6)
    assert Method.of(recipe).forwards(4) == pytest.approx(Method.of(plain).forwards(4) - 1.5 + 7 / 6)
    work, usual = (work_of(each, SIZES, {}, in_parts=False) for each in (recipe, plain))
    assert sum(each.forwards for each in work) == pytest.approx(Method.of(recipe).forwards(4))
    assert sum(each.flops for each in work) < sum(each.flops for each in usual)


@pytest.mark.parametrize("more", [(), ("rollout.half_rate_stages=2",)])
def test_balanced_exits_need_two_rates(more: tuple[str, ...]) -> None:
    with pytest.raises(UserError, match="balanced exits need two rates"):
        load_recipe("avd", ["rollout.exits=balanced", *more])


def test_a_first_exit_leaves_the_stages_before_it_out() -> None:
    exits = Exits(first=1)
    assert exits.shares(4, strided=False) == pytest.approx((0, 1 / 3, 1 / 3, 1 / 3)) and exits.mean(4) == 2
    drawn = Counter(exits.draw(update_random(n), 0, 4, strided=False) for n in range(1500))
    assert set(drawn) == {1, 2, 3} and all(abs(count - 500) < 5 * (1500 * 2 / 9) ** 0.5 for count in drawn.values())
    late, usual = (load_recipe("dp-dmd", [f"rollout.first_exit={first}", "compute.device=cpu"]) for first in (1, 0))
    assert Method.of(late).forwards(4) == Method.of(usual).forwards(4) + 0.5
    work = work_of(late, SIZES, {}, in_parts=False)
    before = next(each for each in work if "before the exit" in each.name)
    assert (before.least, before.forwards, before.most) == (1, 2, 3)
    assert before.flops == pytest.approx(
        2 / 1.5 * next(each for each in work_of(usual, SIZES, {}, in_parts=False) if each.name == before.name).flops
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["rollout.first_exit=4"], r"first_exit must be below the number of timesteps that the run trains \(4\)"),
        (
            ["rollout.first_exit=2", "rollout.transition=euler", "experts.train=low", "experts.high_stages=2"],
            r"first_exit must be below the number of timesteps that the run trains \(2\)",
        ),
        (
            [
                "rollout.first_exit=1",
                "rollout.exits=balanced",
                "rollout.half_rate_stages=2",
                "rollout.half_rate_share=0.5",
            ],
            "balanced exits are at every stage",
        ),
    ],
)
def test_a_first_exit_that_cannot_be_is_refused(changes: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_recipe("avd", changes)
