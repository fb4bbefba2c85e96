"""Comparisons of two sets: known changes are found, intervals cover them, verdicts follow from limits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest

from avd.evaluation.comparison import Change, Conclusion, Difference, JudgedSet, are_paired, compare_sets
from avd.evaluation.suite import ClipRecord, Limit, Measure, NumberFormat, Prompt, Scores, Shape, Values, share
from avd.types import UserError


@dataclass(frozen=True)
class ThreeMeasures:
    """A relative measure, an absolute one, and one that compares the clips of a prompt."""

    name: ClassVar[str] = "three"
    measures: ClassVar[tuple[Measure, ...]] = (
        Measure("colour", "Colour", "", "Help.", NumberFormat(digits=3), limit=Limit(-0.1, 0.1)),
        share("steady", "Steady", "", "Help.", limit=Limit(-0.05, None, relative=False)),
        Measure("spread", "Spread", "", "Help.", NumberFormat(digits=2), limit=Limit(-0.2, None)),
        Measure("free", "Free", "", "Help.", NumberFormat(digits=2)),
    )

    def unavailable(self) -> None:
        return None

    def prompts(self) -> Sequence[Prompt]:
        return []

    def refusal(self, shape: Shape, prompt: Prompt) -> None:
        return None

    def measure(self, video: Any, prompt: Prompt) -> dict[str, Any]:
        return {}

    def prompt_values(self, records: Sequence[ClipRecord]) -> Values:
        values = [record.values.get("colour", 0.0) for record in records]
        return {"spread": max(values) - min(values)} if len(values) > 1 else {}

    def summarise(self, records: Sequence[ClipRecord]) -> Scores:
        return Scores({}, len(records))


SUITE = ThreeMeasures()


def judged(
    name: str,
    values: Callable[[int, int], dict[str, float]],
    *,
    prompts: Sequence[int] = range(40),
    repeats: Sequence[int] = (0, 1),
    fps: float = 16.0,
) -> JudgedSet:
    """A set whose clip of a prompt and a repeat has `values`."""
    records = [
        ClipRecord(f"{name}/{i}-{k}", Prompt(f"prompt {i}", k), Shape(81, 480, 832, fps), values(i, k))
        for i in prompts
        for k in repeats
    ]
    return JudgedSet.of(SUITE, name, records)


def teacher(i: int, k: int) -> dict[str, float]:
    """Prompts differ much, seeds little."""
    wobble = float(np.random.default_rng((i, k)).normal())
    return {"colour": 0.2 + 0.02 * (i % 20) + 0.004 * wobble, "steady": 0.9 + 0.001 * wobble, "free": float(i)}


def changed(colour: float = 1.0, steady: float = 0.0, noise: float = 0.01) -> Callable[[int, int], dict[str, float]]:
    """The teacher's values changed by a known amount, and a little besides."""

    def values(i: int, k: int) -> dict[str, float]:
        wobble = float(np.random.default_rng((i, k, 1)).normal())
        known = teacher(i, k)
        return known | {
            "colour": known["colour"] * (colour + noise * wobble),
            "steady": known["steady"] + steady + 0.1 * noise * wobble,
        }

    return values


def difference(key: str, subject: JudgedSet, reference: JudgedSet, **options: Any) -> Difference:
    found = compare_sets(SUITE, subject, reference, **options).differences
    return next(each for each in found if each.measure.key == key)


@pytest.mark.parametrize(
    ("factor", "verdict"),
    [(1.04, Conclusion.within), (0.8, Conclusion.outside), (1.3, Conclusion.outside), (1.1, Conclusion.undecided)],
)
def test_a_known_change_is_found_and_judged(factor: float, verdict: Conclusion) -> None:
    found = difference("colour", judged("student", changed(factor)), judged("teacher", teacher))
    assert found.change is not None and found.change.low is not None and found.change.high is not None
    assert found.change.low < factor - 1 < found.change.high
    assert found.change.middle == pytest.approx(factor - 1, abs=0.005)
    assert found.verdict is verdict


def test_pairs_cancel_what_makes_prompts_differ() -> None:
    student, reference = judged("student", changed(1.04)), judged("teacher", teacher)
    widths = []
    for unpaired in (False, True):
        change = difference("colour", student, reference, unpaired=unpaired).change
        assert change is not None and change.low is not None and change.high is not None
        assert change.low < 0.04 < change.high
        widths.append(change.high - change.low)
    assert widths[1] > 10 * widths[0]


def test_more_seeds_of_the_same_prompts_do_not_make_the_interval_certain() -> None:
    """Seeds do not average out what depends on the prompt; drawing clips would have the interval 5 times narrower."""

    def by_prompt(i: int, k: int) -> dict[str, float]:
        return {"colour": 0.5 * (1 + 0.1 * float(np.random.default_rng(i).normal()))}

    def width(repeats: int) -> float:
        fills = by_prompt, lambda i, k: {"colour": 0.5}
        student, reference = (judged("a set", fill, prompts=range(20), repeats=range(repeats)) for fill in fills)
        change = difference("colour", student, reference).change
        assert change is not None and change.low is not None and change.high is not None
        return change.high - change.low

    assert width(25) == pytest.approx(width(1), rel=0.01)


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    covered = 0
    for trial in range(60):
        random = np.random.default_rng(trial)
        drawn = {(i, k): float(random.normal(0.03, 0.1)) for i in range(30) for k in range(2)}
        student = judged("student", lambda i, k, drawn=drawn: {"steady": 0.5 + drawn[i, k]}, prompts=range(30))
        change = difference(
            "steady", student, judged("teacher", lambda i, k: {"steady": 0.5}, prompts=range(30))
        ).change
        assert change is not None and change.low is not None and change.high is not None
        covered += change.low <= 0.03 <= change.high
    assert 51 <= covered <= 60  # 57 expected; 51 or fewer has a chance of 1 %


def test_a_measure_of_prompts_is_compared_by_prompt() -> None:
    """Seeds of the student lie half as far apart."""
    half = judged("student", lambda i, k: {"colour": 0.3 + 0.05 * k})
    found = difference("spread", half, judged("teacher", lambda i, k: {"colour": 0.4 + 0.1 * k}))
    assert found.change is not None and found.change.middle == pytest.approx(-0.5)
    assert (found.prompts, found.verdict) == (40, Conclusion.outside)


def test_too_few_prompts_have_a_change_and_no_verdict() -> None:
    few = range(4)
    found = difference("colour", judged("s", changed(1.5), prompts=few), judged("t", teacher, prompts=few))
    assert found.change is not None and found.change.low is None
    assert found.change_text().startswith("+49.8 %") and found.verdict_text().startswith(
        "not decided: fewer than 10 prompts"
    )


def test_nothing_is_relative_to_zero() -> None:
    found = difference("colour", judged("s", teacher), judged("t", lambda i, k: {"colour": 0.0}))
    assert found.change is None and found.verdict is Conclusion.undecided
    assert "the reference's is next to 0" in found.verdict_text()


def test_texts_say_change_interval_and_limit() -> None:
    relative, absolute = SUITE.measures[:2]
    saturation = Difference(relative, 0.52, 0.5, Change(0.04, 0.02, 0.06), 40)
    assert saturation.change_text() == "+4.0 % (+2.0 to +6.0)"
    assert saturation.verdict_text() == "within the limit (-10 to +10 %)"
    steady = Difference(absolute, 0.8, 0.9, Change(-0.1, -0.12, -0.08), 40)
    assert steady.change_text() == "-10.0 points (-12.0 to -8.0)"
    assert steady.verdict_text() == "outside the limit (at least -5 points)"
    assert difference("free", judged("s", teacher), judged("t", teacher)).verdict_text() == ""


def test_a_partner_has_the_same_prompt_and_repeat() -> None:
    own = judged("student", teacher, prompts=range(6))
    more = judged("teacher", teacher, prompts=range(9, -1, -1), repeats=(2, 1, 0))
    compared = compare_sets(SUITE, own, more)
    assert compared.pairs is not None and len(compared.pairs) == 12
    assert all(mine.prompt == theirs.prompt and mine.clip != theirs.clip for mine, theirs in compared.pairs)
    assert [each.change.middle for each in compared.differences if each.change] == [0.0, 0.0, 0.0, 0.0]


def test_real_videos_are_not_paired() -> None:
    real = judged("real", teacher, prompts=range(100, 160), repeats=(0,))
    assert compare_sets(SUITE, judged("student", teacher), real).pairs is None


def test_sets_that_overlap_in_part_are_refused() -> None:
    prompts = [Prompt("a"), Prompt("b")]
    with pytest.raises(UserError, match="1 of 2 clips of s have no partner in t, the first is repeat 0 of 'b'"):
        are_paired(prompts, [Prompt("a"), Prompt("b", 1)], False, ("s", "t"))
    assert not are_paired(prompts, prompts[:1], True, ("s", "t"))


def test_other_frame_rates_are_refused() -> None:
    with pytest.raises(UserError, match="clips of s are at 16 fps and those of t at 24: "):
        compare_sets(SUITE, judged("s", teacher), judged("t", teacher, fps=24.0))


def test_other_sizes_are_reported() -> None:
    student, reference = judged("s", teacher), judged("t", teacher)
    assert compare_sets(SUITE, student, reference).size_note() == ""
    larger = [replace(record, shape=Shape(49, 720, 1280, 16.0)) for record in reference.records]
    note = compare_sets(SUITE, student, JudgedSet.of(SUITE, "t", larger)).size_note()
    assert "clips of s are 81 frames of 480 x 832, those of t 49 frames of 720 x 1280" in note


def test_the_same_seed_gives_the_same_interval_and_json_holds_it() -> None:
    sets = judged("student", changed(1.04, steady=-0.2)), judged("teacher", teacher)
    first, again = (compare_sets(SUITE, *sets, seed=3).as_json() for _ in range(2))
    assert first == again != compare_sets(SUITE, *sets, seed=4).as_json()
    assert (first["reference"], first["videos"], first["pairs"]) == ("teacher", 80, 80)
    steady = first["measures"]["steady"]
    assert steady["verdict"] == "outside the limit" and steady["low"] <= steady["change"] <= steady["high"]


def test_a_clip_without_a_value_is_left_out_with_its_partner() -> None:
    partial = judged("student", teacher)
    records = [replace(r, values={"colour": None}) if i % 2 else r for i, r in enumerate(partial.records)]
    found = difference("steady", JudgedSet("student", tuple(records), {}), judged("teacher", teacher))
    assert found.change is not None and found.change.middle == 0.0


def test_intervals_of_ten_prompts_cover_the_truth_too() -> None:
    """Plain percentiles cover it 90 times in 100, widened ones 95 (of 1,000 simulations)."""
    random, covered = np.random.default_rng(0), 0
    even = judged("t", lambda i, k: {"steady": 0.5}, prompts=range(10), repeats=(0,))
    for _ in range(250):
        drawn = 0.5 + random.normal(0.0, 0.1, 10)
        student = judged("s", lambda i, k, drawn=drawn: {"steady": float(drawn[i])}, prompts=range(10), repeats=(0,))
        change = difference("steady", student, even).change
        assert change is not None and change.low is not None and change.high is not None
        covered += change.low <= 0.0 <= change.high
    assert covered >= 231  # 238 expected; plain percentiles 224


@pytest.mark.parametrize(("prompts", "verdict"), [(29, Conclusion.undecided), (30, Conclusion.within)])
def test_few_that_agree_do_not_make_a_share_certain(prompts: int, verdict: Conclusion) -> None:
    moves = Measure("m", "M", "", "H.", NumberFormat(), limit=Limit(-0.1, 0.1, relative=False), of_yes_or_no=True)
    suite: Any = SimpleNamespace(measures=(moves,), prompt_values=lambda records: {})
    sets = [judged(name, lambda i, k: {"m": 1.0}, prompts=range(prompts)) for name in "st"]
    (found,) = compare_sets(suite, *sets).differences
    assert found.change is not None and found.change.high == pytest.approx(3 / prompts)
    assert found.verdict is verdict


def test_nothing_is_relative_to_next_to_nothing() -> None:
    grey = Measure("m", "M", "", "H.", NumberFormat(digits=3), limit=Limit(-0.1, 0.1, floor=0.01))
    suite: Any = SimpleNamespace(measures=(grey,), prompt_values=lambda records: {})
    (found,) = compare_sets(
        suite, judged("s", lambda i, k: {"m": 0.5}), judged("t", lambda i, k: {"m": 0.0005})
    ).differences
    assert found.change is None and "next to 0" in found.verdict_text()


def test_rates_are_those_of_pairs() -> None:
    def mixed(name: str, first: float, second: float) -> JudgedSet:
        halves = [
            judged(name, teacher, prompts=range(8), fps=first),
            judged(name, teacher, prompts=range(8, 16), fps=second),
        ]
        return JudgedSet.of(SUITE, name, [record for half in halves for record in half.records])

    assert compare_sets(SUITE, mixed("s", 8.0, 16.0), mixed("t", 8.0, 16.0)).pairs
    with pytest.raises(UserError, match="clips of s are at 8 fps and those of t at 16: "):
        compare_sets(SUITE, mixed("s", 8.0, 16.0), mixed("t", 16.0, 8.0))


def test_the_reference_shown_is_that_of_the_partners() -> None:
    own = judged("s", lambda i, k: {"colour": 0.5}, prompts=range(12))
    theirs = judged("t", lambda i, k: {"colour": 0.4 + 0.1 * k}, prompts=range(12), repeats=range(4))
    compared = compare_sets(SUITE, own, theirs)
    found = compared.differences[0]
    assert found.change is not None and found.value / found.reference - 1 == pytest.approx(found.change.middle)
    assert compared.partners_note() == "24 of 48 clips of t are partners: means are over those"
    assert compare_sets(SUITE, own, own).partners_note() == ""
