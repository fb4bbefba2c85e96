"""The rule by which a knob's value is chosen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from avd.evaluation.rows import Row
from avd.experiments.ablation.tuning import Trial, choose

MakeRow = Callable[..., Row]
TRUTH: dict[str, Any] = {"dynamic_degree": 0.7}
GOOD: dict[str, Any] = {
    "instance_preservation": 0.9,
    "caption_accuracy": 0.8,
    "dynamic_degree": 0.6,
    "saturation_error": 0.02,
}


def test_the_loss_is_the_sum_that_was_fixed_and_its_error_the_roots_of_squares(make_row: MakeRow) -> None:
    errors = {"world": {"instance_preservation": 0.03, "saturation_error": 0.004}}
    trial = Trial.of(5.0, [make_row(**GOOD, errors=errors)] * 2, make_row(**TRUTH))
    assert trial.loss == pytest.approx(0.1 + 0.2 + 0.1 + 0.2)
    assert trial.error == pytest.approx((0.03**2 + 0.04**2) ** 0.5 / 2**0.5)


def test_too_much_motion_is_as_bad_as_too_little(make_row: MakeRow) -> None:
    rows = [make_row(**GOOD | {"dynamic_degree": degree}) for degree in (0.6, 0.8)]
    few, many = (Trial.of(0, [row], make_row(**TRUTH)).loss for row in rows)
    assert few == pytest.approx(many)


def test_a_value_wins_by_more_than_the_error_alone() -> None:
    own, better, best = Trial(1, 0.50, 0.03), Trial(2, 0.46, 0.03), Trial(3, 0.45, 0.03)
    assert choose([own, better, best]).value == 3  # better by 0.05, the error is 0.042
    assert choose([own, better]).value == 1
    assert choose([better, own, best]).value == 2
