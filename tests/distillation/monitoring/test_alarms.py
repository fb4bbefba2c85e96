"""Alarms: reported once when crossed, once when recovered, in words with numbers."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avd.config import LimitsRecipe
from avd.distillation.monitoring.alarms import Alarms, rules_of

TIMESTEPS = (1000, 522)


def alarms(**limits: float | None) -> Alarms:
    return Alarms(rules_of(LimitsRecipe(**limits), TIMESTEPS, several_seeds=True))


@pytest.mark.parametrize(
    ("metric", "bad", "good", "warning", "recovery"),
    [
        ("saturation_to_real", 1.31, 0.88, "saturation 31 % above real data: oversaturation",
         "saturation 12 % below real data: recovered from oversaturation"),
        ("contrast_to_real", 1.4, 1.1, "contrast 40 % above real data: overcontrast",
         "contrast 10 % above real data: recovered from overcontrast"),
        ("motion_to_teacher", 0.43, 0.9, "motion at 43 % of the teacher's: temporal collapse",
         "motion at 90 % of the teacher's: recovered from temporal collapse"),
        ("diversity_appearance_to_teacher", 0.12, 0.9,
         "videos of one prompt differ by 12 % of what the teacher's do: every seed gives much the same",
         "videos of one prompt differ by 90 % of what the teacher's do: seeds differ again"),
        ("fake_score_rise", 1.8, 0.1, "the fake score's loss 180 % above its lowest level: it lags behind the student",
         "the fake score's loss 10 % above its lowest level: no longer lags behind"),
        ("weight_low_522", 0.63, 0.2, "63 % of the regression's weights at timestep 522 below 0.1: it hardly acts",
         "20 % of the regression's weights at timestep 522 below 0.1: acts again"),
    ],
)  # fmt: skip
def test_words(metric: str, bad: float, good: float, warning: str, recovery: str) -> None:
    judge = alarms()
    texts = [[event.text for event in judge.judge({metric: value})] for value in (good, bad, bad, good, good)]
    assert texts == [[], [warning], [], [recovery], []]


@settings(deadline=None)
@given(values=st.lists(st.one_of(st.floats(0.0, 3.0), st.just(math.nan)), max_size=30), patience=st.integers(1, 4))
def test_an_alarm_follows_its_figure(values: list[float], patience: int) -> None:
    judge, streak, was = alarms(), 0, False
    for value in values:
        events = judge.judge({"saturation_to_real": value})
        if not math.isnan(value):
            streak = streak + 1 if value > 1.25 else 0
            assert [event.kind for event in events] == (
                [] if was == bool(streak) else ["crossed" if streak else "recovered"]
            )
            was = bool(streak)
            lasting = judge.lasting({"saturation_to_real": value}, patience)
            assert (lasting is not None) == (streak >= patience)
        else:
            assert events == []
        assert judge.crossed == bool(streak)
        state, judge = json.loads(json.dumps(judge.state_dict())), alarms()
        judge.load_state_dict(state)


def test_what_lasts_is_reported_together() -> None:
    judge, metrics = alarms(), {"saturation_to_real": 2.0, "motion_to_teacher": 0.1}
    judge.judge(metrics)
    assert judge.lasting(metrics, 2) is None
    judge.judge(metrics)
    assert judge.lasting(metrics, 2) == (
        "saturation 100 % above real data: oversaturation, for 2 measurements in a row; "
        "motion at 10 % of the teacher's: temporal collapse, for 2 measurements in a row"
    )


def test_a_rule_may_be_switched_off() -> None:
    off = alarms(saturation=None, contrast=None, motion=None, fake_score=None, low_weights=None)
    assert off.judge({"saturation_to_real": 9.0, "motion_to_teacher": 0.0, "weight_low_1000": 1.0}) == []
    before = alarms()
    before.judge({"motion_to_teacher": 0.0})
    off.load_state_dict(before.state_dict())
    assert off.crossed == 0
