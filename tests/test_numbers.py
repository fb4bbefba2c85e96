"""The count of the numbers (`numbers.NUMBERS`) goes up with the golden metrics, so that older rows are marked."""

from __future__ import annotations

import json

import pytest

from avd.distillation.numbers import NUMBERS
from helpers.golden import NUMBERS_FILE, digests, have_moved, numbers_fault

RECORDED = {"numbers": 3, "golden": {"a": "1", "b": "2"}}


def test_the_golden_metrics_are_those_of_todays_count() -> None:
    assert numbers_fault(json.loads(NUMBERS_FILE.read_text(encoding="utf-8")), digests(), NUMBERS) is None


@pytest.mark.parametrize(
    ("found", "numbers", "fault"),
    [
        ({"a": "1", "b": "2"}, 3, None),
        ({"a": "1", "b": "2", "new": "9"}, 3, "new.jsonl is not in"),
        ({"a": "1"}, 3, None),
        ({"a": "1", "b": "7"}, 3, "b.jsonl has moved"),
        ({"a": "1", "b": "2"}, 4, "is of NUMBERS 3"),
    ],
)
def test_what_has_moved_needs_another_count(found: dict[str, str], numbers: int, fault: str | None) -> None:
    reason = numbers_fault(RECORDED, found, numbers)
    assert (reason is None) == (fault is None) and (fault or "") in (reason or "")


def test_rounding_is_no_move() -> None:
    before = {"a": [{"update": 0, "loss": 2.0}]}
    assert not have_moved(before, {"a": [{"update": 0, "loss": 2.0001}], "new": []})
    assert have_moved(before, {"a": [{"update": 0, "loss": 2.1}]})
