"""How far are two rows apart, and does the paper's order of them hold? A change with its error, and what follows.

Rows of one seed share their noise, so methods are compared seed by seed: with values a_s, b_s of S seeds and their
standard errors e(a_s), e(b_s),

    d_s = a_s - b_s        change = mean d_s

The half-width of its interval is the larger of two, as either alone may undo the change:

    t(S - 1) std(d_s) / sqrt(S)                         what other seeds would change, with Student's t for 95 %
    1.96 sqrt(mean_s e(a_s)^2 + e(b_s)^2)               what other captions would change

The second does not shrink with S: all seeds are judged on the same captions, so another seed tells nothing of other
captions. It is rather too wide, as both rows have these captions too. If the interval lies on the paper's side of
0, the order agrees, on the other it disagrees, and across 0, or with a single seed, it is undecided. A pair of which
the paper has no order is higher, lower or undecided likewise.

Rows are compared as they were tuned, each by its own trials: what a sentence's first row adds to the second is then not
all that differs between them, and the sentence says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from scipy.special import stdtrit

from avd.config import AblationRecipe
from avd.evaluation.rows import Row
from avd.evaluation.suite import Measure
from avd.evaluation.suites import declared_measures
from avd.evaluation.suites.world import WorldSuite

_SURE = 0.975
_NORMAL = 1.96
_PUBLISHED = ("instance_preservation", "dynamic_degree")
"""Measures that the paper's ablation has too, by its own suites."""
_COMPARED = ("instance_preservation", "caption_accuracy", "dynamic_degree", "saturation_error")
"""Measures of a comparison: those of the rule that knobs are tuned by (`tuning.choose`)."""


class Agreement(StrEnum):
    agrees = "agrees"
    disagrees = "disagrees"
    undecided = "undecided"


@dataclass(frozen=True)
class SeedChange:
    """How far one row's measure is from another's, over the seeds that both have; `half_width` None with one seed."""

    change: float
    half_width: float | None
    seeds: int

    @property
    def is_decided(self) -> bool:
        """Whether 0 is outside of its interval."""
        return self.half_width is not None and abs(self.change) > self.half_width

    def agreement(self, expected: float) -> Agreement:
        """With a change of the sign of `expected`."""
        if not self.is_decided:
            return Agreement.undecided
        return Agreement.agrees if self.change * expected > 0 else Agreement.disagrees


def compare_rows(rows: Sequence[Row], others: Sequence[Row], suite: str, measure: str) -> SeedChange | None:
    """`rows` of one name against `others` of another; None where no seed has both."""
    mine, theirs = (_by_seed(each, suite, measure) for each in (rows, others))
    seeds = sorted(mine.keys() & theirs.keys())
    if not seeds:
        return None
    differences = [mine[seed][0] - theirs[seed][0] for seed in seeds]
    count, change = len(seeds), sum(differences) / len(seeds)
    if count == 1:
        return SeedChange(change, None, 1)
    deviation = (sum((each - change) ** 2 for each in differences) / (count - 1)) ** 0.5
    squares = sum(side[seed][1] ** 2 for side in (mine, theirs) for seed in seeds)
    spread = float(stdtrit(count - 1, _SURE)) * deviation / count**0.5
    return SeedChange(change, max(spread, _NORMAL * (squares / count) ** 0.5), count)


def _by_seed(rows: Sequence[Row], suite: str, measure: str) -> dict[int, tuple[float, float]]:
    """Value and standard error of each seed that has a value; an error that nobody recorded counts as 0."""
    found = {}
    for row in rows:
        value = row.score(suite, measure)
        if value is not None:
            found[row.seed] = (value, row.error(suite, measure) or 0.0)
    return found


@dataclass(frozen=True)
class Sentence:
    """What was found of two rows, in words."""

    rows: tuple[str, str]
    text: str


def order_sentences(plan: AblationRecipe, found: Sequence[Row], knobs: Mapping[str, str]) -> list[dict[str, Any]]:
    """The plan's orderings held against the rows that were found, as JSON. `knobs` says by row how it was tuned."""
    measures, papers = declared_measures(WorldSuite.name), {row.name: row.paper for row in plan.rows}
    sentences = []
    for pair in plan.orderings:
        for key in _PUBLISHED:
            published = [getattr(papers[name], key) for name in pair]
            change = _change(found, pair, key)
            if change is not None and None not in published and published[0] != published[1]:
                text = describe_ordering(pair, measures[key], (published[0], published[1]), change)
                sentences.append(asdict(Sentence(pair, text + _as_tuned(pair, knobs))))
    return sentences


def comparison_sentences(plan: AblationRecipe, found: Sequence[Row], knobs: Mapping[str, str]) -> list[dict[str, Any]]:
    """The plan's comparisons, of which no sign is expected, as JSON. `knobs` as above."""
    measures = declared_measures(WorldSuite.name)
    sentences = []
    for pair in plan.comparisons:
        for key in _COMPARED:
            change = _change(found, pair, key)
            if change is not None:
                text = describe_comparison(pair, measures[key], change)
                sentences.append(asdict(Sentence(pair, text + _as_tuned(pair, knobs))))
    return sentences


def _change(found: Sequence[Row], pair: tuple[str, str], measure: str) -> SeedChange | None:
    mine, theirs = ([row for row in found if row.name == name] for name in pair)
    return compare_rows(mine, theirs, WorldSuite.name, measure)


def describe_ordering(
    names: tuple[str, str], measure: Measure, published: tuple[float, float], found: SeedChange
) -> str:
    """A sentence: what the paper has of the first row against the second, what is found, and whether it agrees."""
    expected = published[0] - published[1]
    shown = measure.change_format.text(expected)
    return (
        f"{_subject(names, measure)}: the paper has {shown}, {_finding(measure, found)}: {found.agreement(expected)}."
    )


def describe_comparison(names: tuple[str, str], measure: Measure, found: SeedChange) -> str:
    """A sentence: how far the first row is from the second, and whether that is more than chance."""
    verdict = "undecided" if not found.is_decided else "higher" if found.change > 0 else "lower"
    return f"{_subject(names, measure)}: {_finding(measure, found)}: {verdict}."


def _subject(names: tuple[str, str], measure: Measure) -> str:
    return f"{names[0]} against {names[1]}, {measure.title.lower()}"


def _finding(measure: Measure, found: SeedChange) -> str:
    shown = measure.change_format
    change = shown.text(found.change)
    if found.half_width is None:
        return f"one seed here {change}"
    return f"here {change.removesuffix(shown.unit)} ± {found.half_width * shown.scale:.{shown.digits}f}{shown.unit}"


def _as_tuned(pair: tuple[str, str], knobs: Mapping[str, str]) -> str:
    """What tuning has made of the two, as the end of a sentence; empty where both are their recipes'."""
    tuned = [f"{name} {knobs[name]}" for name in pair if name in knobs]
    return f" Compared as tuned: {', '.join(tuned)}." if tuned else ""
