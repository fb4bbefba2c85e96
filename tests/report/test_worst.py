"""The worst clips: by the side on which a measure is at fault, next to the right partner."""

from __future__ import annotations

from dataclasses import replace

import pytest

from avd.evaluation.comparison import compare_sets
from avd.evaluation.suite import Limit, Measure, NumberFormat
from avd.report.worst import BadClips, worst_alone, worst_pairs
from helpers.judged import judged, suite_of

GLOW = Measure("glow", "Glow", "", "How much it glows.", NumberFormat(digits=1))
SPREAD = replace(GLOW, key="spread", limit=Limit(-0.2, None))
SIDES = [
    (Limit(None, 1.0), [3, 2]),
    (Limit(-1.0, None), [0, 1]),
    (Limit(-1.0, 1.0), [0, 3, 2, 1]),
    (None, [0, 3, 2, 1]),
]


def clips(faults: list[BadClips]) -> list[str]:
    return [fault.clips[0].clip for fault in faults]


@pytest.mark.parametrize(("limit", "order"), SIDES)
def test_the_limit_says_which_side_is_at_fault(limit: Limit | None, order: list[int]) -> None:
    measure = replace(GLOW, limit=limit)
    own, theirs = judged("own", {"glow": [1.0, 5.5, 7.0, 9.0]}), judged("theirs", {"glow": [6.0, 6.0, 6.0, 6.0]})
    compared = compare_sets(suite_of(measure), own, theirs)
    found = worst_pairs(measure, compared, 9)
    assert clips(found) == [f"own/{i}.mp4" for i in order]
    assert [fault.partners[0].clip for fault in found] == [f"theirs/{i}.mp4" for i in order]
    assert clips(worst_pairs(measure, compared, 1)) == [f"own/{order[0]}.mp4"]


def test_each_clip_is_held_against_its_own_partner() -> None:
    own, theirs = judged("own", {"glow": [9.0, 2.0, 5.0]}), judged("theirs", {"glow": [9.0, 1.0, 5.5]})
    (fault, other) = worst_pairs(GLOW, compare_sets(suite_of(GLOW), own, theirs), 9)
    assert (fault.clips[0].clip, fault.value, fault.partner_value) == ("own/1.mp4", 2.0, 1.0)
    assert other.clips[0].clip == "own/2.mp4"  # the first clip is just as the reference's: nothing to look at


def test_sets_that_are_not_paired_are_held_against_an_ordinary_clip() -> None:
    own, theirs = judged("own", {"glow": [9.0, 2.0]}), judged("theirs", {"glow": [1.0, 3.0, 8.0]})
    found = worst_pairs(GLOW, compare_sets(suite_of(GLOW), own, theirs, unpaired=True), 9)
    assert clips(found) == ["own/0.mp4", "own/1.mp4"]
    assert {fault.partners[0].clip for fault in found} == {"theirs/1.mp4"}


def test_without_a_reference_clips_are_held_against_their_median() -> None:
    found = worst_alone(GLOW, judged("own", {"glow": [5.0, 6.0, 5.5, 0.0, 5.1]}), 2)
    assert clips(found) == ["own/3.mp4", "own/1.mp4"]
    assert all(fault.partners == () and fault.partner_value is None for fault in found)
    assert worst_alone(SPREAD, judged("own", {"glow": [1.0]}), 2) == []


def test_of_measures_that_compare_the_seeds_of_a_prompt_the_worst_prompts_are_found() -> None:
    own = judged("own", {"glow": [0.0] * 6}, repeats=3, prompt_values={"spread": [0.9, 0.1]})
    theirs = judged("theirs", {"glow": [0.0] * 6}, repeats=3, prompt_values={"spread": [0.5, 0.5]})
    (fault,) = worst_pairs(SPREAD, compare_sets(suite_of(SPREAD), own, theirs), 9)
    assert [each.clip for each in fault.clips] == ["own/3.mp4", "own/4.mp4"]
    assert [each.clip for each in fault.partners] == ["theirs/3.mp4", "theirs/4.mp4"]
    assert (fault.value, fault.partner_value) == (0.1, 0.5)
    assert worst_alone(SPREAD, own, 9)[0].value == 0.1
