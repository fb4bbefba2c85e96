"""Two sets of clips, measure by measure: the change from a reference, its interval, and a verdict.

With a, b a measure's values of the clips judged and of the reference, the change is

    mean a - mean b              in the measure's unit
    mean a / mean b - 1          relative, in shares of the reference's

Sets are paired if they answer the same prompts with the same repeats; the means are then over the pairs. The interval
is the percentile bootstrap's of about 95 %: prompts are drawn with replacement, each with all of its clips, because
clips of one prompt are alike. Of paired sets the same prompts are drawn in both, so what makes one prompt differ from
another cancels; of others, each set's by themselves. Measures that compare the clips of a prompt have one value per
prompt. The percentiles of n prompts are too narrow, so both sides are widened by t(n - 1) / 1.96 * sqrt(n / (n - 1)).
Where a clip has or has not what is counted, n that agree do not make it certain: either side is at least 3 / n, the
rule of three.

The verdict holds the interval against the measure's limit: within if all of it lies within, outside if all of
it lies outside, and undecided if it reaches across, or if there are too few prompts for an interval.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from enum import StrEnum
from typing import Any

import numpy as np
from scipy.special import stdtrit

from avd.evaluation.suite import (
    ClipRecord,
    ClipSuite,
    Limit,
    Measure,
    Prompt,
    PromptKey,
    Values,
    group_by_prompt,
)
from avd.types import UserError

LEAST_PROMPTS = 10
"""Prompts below which no interval is given: a bootstrap of fewer is far too narrow."""
_DRAWS = 2000
_INTERVAL = 95
"""Per cent."""
_NORMAL = 1.96
"""How many standard deviations that is to either side."""


@dataclass(frozen=True)
class JudgedSet:
    """The clips of a row, and what was measured of them."""

    name: str
    records: tuple[ClipRecord, ...]
    prompt_values: Mapping[PromptKey, Values]
    """Values of the measures that compare the clips of a prompt."""

    @staticmethod
    def of(suite: ClipSuite, name: str, records: Sequence[ClipRecord]) -> JudgedSet:
        """The set of a suite's records."""
        grouped = group_by_prompt(records)
        return JudgedSet(name, tuple(records), {key: suite.prompt_values(group) for key, group in grouped.items()})

    @property
    def prompts(self) -> list[Prompt]:
        """Those of the clips."""
        return [record.prompt for record in self.records]

    def values(self, measure: Measure) -> list[float]:
        """A measure's values, of those clips, or those prompts, that have one."""
        sources = [record.values for record in self.records] + list(self.prompt_values.values())
        return [float(each[measure.key]) for each in sources if each.get(measure.key) is not None]


class Conclusion(StrEnum):
    within = "within the limit"
    outside = "outside the limit"
    undecided = "not decided"


@dataclass(frozen=True)
class Change:
    """How far a measure is from the reference's. `low` and `high` are None where there are too few prompts; `high` is
    infinite where a reference of other prompts might as well be 0."""

    middle: float
    low: float | None
    high: float | None

    def verdict(self, limit: Limit) -> Conclusion:
        """The interval against a limit."""
        least = -np.inf if limit.low is None else limit.low
        most = np.inf if limit.high is None else limit.high
        if self.low is None or self.high is None:
            return Conclusion.undecided
        if least <= self.low and self.high <= most:
            return Conclusion.within
        return Conclusion.outside if self.high < least or self.low > most else Conclusion.undecided


@dataclass(frozen=True)
class Difference:
    """A measure of both sets."""

    measure: Measure
    value: float
    reference: float
    change: Change | None
    """Relative if the measure's limit is; None where it would be relative to next to nothing (`Limit.floor`)."""
    prompts: int
    """How many the means are over, in the smaller set."""

    @property
    def relative(self) -> bool:
        """Whether the change is in shares of the reference's value."""
        return self.measure.limit is not None and self.measure.limit.relative

    @property
    def verdict(self) -> Conclusion | None:
        """None for a measure without a limit."""
        if self.measure.limit is None:
            return None
        return Conclusion.undecided if self.change is None else self.change.verdict(self.measure.limit)

    def middle_text(self) -> str:
        """The change without its interval, for example "+4.0 %"."""
        if self.change is None:
            return f"{self.measure.format.text(self.value)} to {self.measure.format.text(self.reference)}"
        return self.measure.change_format.text(self.change.middle)

    def interval_text(self) -> str:
        """For example "+2.0 to +6.0", or "+2.0 or more", in the unit of the change; empty without an interval."""
        if self.change is None or self.change.low is None or self.change.high is None:
            return ""
        shown = replace(self.measure.change_format, unit="")
        if self.change.high == np.inf:
            return f"{shown.text(self.change.low)} or more"
        return f"{shown.text(self.change.low)} to {shown.text(self.change.high)}"

    def change_text(self) -> str:
        """For example "+4.0 % (+2.0 to +6.0)"."""
        interval = self.interval_text()
        return self.middle_text() + (f" ({interval})" if interval else "")

    def verdict_text(self) -> str:
        """The verdict and the limit, or why there is none; empty for a measure without a limit."""
        limit = self.measure.limit_text()
        if self.verdict is None:
            return ""
        if self.verdict is not Conclusion.undecided:
            return f"{self.verdict} ({limit})"
        if self.change is None:
            return f"{self.verdict}: the reference's is next to 0 (limit {limit})"
        if self.change.low is None:
            return f"{self.verdict}: fewer than {LEAST_PROMPTS} prompts (limit {limit})"
        return f"{self.verdict}: the interval reaches across the limit ({limit})"


@dataclass(frozen=True)
class SetComparison:
    """Clips judged against a reference."""

    subject: JudgedSet
    reference: JudgedSet
    pairs: tuple[tuple[ClipRecord, ClipRecord], ...] | None
    """Each clip with the reference's of its prompt and repeat; None if the sets are not paired."""
    differences: tuple[Difference, ...]
    """In the order in which the suite declares its measures; those that both sets have."""
    left_out: int = 0
    """Clips of the reference that are nobody's partner; `reference` is without them."""

    def partners_note(self) -> str:
        """How many of the reference's clips count, in a line; empty where all do."""
        count = len(self.reference.records)
        if not self.left_out:
            return ""
        return f"{count} of {count + self.left_out} clips of {self.reference.name} are partners: means are over those"

    def size_note(self) -> str:
        """What to know of clips of other sizes or lengths, in a line; empty where both sets have the same."""
        own, theirs = (
            sorted({replace(record.shape, fps=0.0) for record in each.records}, key=astuple)
            for each in (self.subject, self.reference)
        )
        if own == theirs:
            return ""
        shapes = [
            f"{first.frames} frames of {first.height} x {first.width}" + (" and others" if others else "")
            for first, *others in (own, theirs)
        ]
        return (
            f"clips of {self.subject.name} are {shapes[0]}, those of {self.reference.name} {shapes[1]}: sharpness, "
            "motion smoothness and temporal variance depend on that"
        )

    def as_json(self) -> dict[str, Any]:
        """What `results.json` keeps of it, under `meta`."""
        return {
            "reference": self.reference.name,
            "videos": len(self.reference.records),
            "pairs": None if self.pairs is None else len(self.pairs),
            "measures": {each.measure.key: _as_json(each) for each in self.differences},
        }


def compare_sets(
    suite: ClipSuite, subject: JudgedSet, reference: JudgedSet, *, unpaired: bool = False, seed: int = 0
) -> SetComparison:
    """Compare what a suite measured of two sets. `seed` is the bootstrap's.

    They are paired if every clip of the subject has a partner in the reference, of its prompt and repeat, and not if
    none has, or if `unpaired`. Raises UserError where some have and some have not, and for other frame rates.
    """
    names, (own, theirs) = (subject.name, reference.name), (subject.prompts, reference.prompts)
    pairs, everything = None, len(reference.records)
    if are_paired(own, theirs, unpaired, names):
        partners = {record.prompt: record for record in reference.records}
        pairs = tuple((record, partners[record.prompt]) for record in subject.records)
        reference = JudgedSet.of(suite, reference.name, [theirs for _, theirs in pairs])  # no more seeds than it has
    _check_rates(subject, reference, pairs)
    differences = []
    for measure in suite.measures:
        if pairs is None:
            tallies = _tally(measure, subject, subject.records), _tally(measure, reference, reference.records)
        else:
            tallies = _paired_tallies(measure, subject, reference, pairs)
        if all(tallies):
            differences.append(_difference(measure, *tallies, paired=pairs is not None, seed=seed))
    return SetComparison(subject, reference, pairs, tuple(differences), everything - len(reference.records))


# Pairs


def are_paired(subject: Sequence[Prompt], reference: Sequence[Prompt], unpaired: bool, names: tuple[str, str]) -> bool:
    """Whether clips of these prompts are compared in pairs; see `compare_sets`, which raises as this does."""
    if unpaired:
        return False
    partners = set(reference)
    alone = [prompt for prompt in subject if prompt not in partners]
    if 0 < len(alone) < len(subject):
        raise UserError(
            f"{len(alone)} of {len(subject)} clips of {names[0]} have no partner in {names[1]}, the first is repeat "
            f"{alone[0].repeat} of {alone[0].text!r}: give both the same prompts and repeats, or compare them with "
            "--unpaired"
        )
    return not alone


def _check_rates(
    subject: JudgedSet, reference: JudgedSet, pairs: Sequence[tuple[ClipRecord, ClipRecord]] | None
) -> None:
    """Raise UserError for a pair of two rates, and for unpaired sets that have not the same rates."""
    sets = [(subject.records, reference.records)] if pairs is None else [((own,), (theirs,)) for own, theirs in pairs]
    for both in sets:
        rates = [sorted({round(record.shape.fps, 1) for record in records}) for records in both]
        if rates[0] == rates[1]:
            continue
        shown = [" and ".join(f"{rate:g}" for rate in each) for each in rates]
        raise UserError(
            f"clips of {subject.name} are at {shown[0]} fps and those of {reference.name} at {shown[1]}: measures of "
            "motion compare frames, so bring both to one rate (ffmpeg -r)"
        )


# Means, and how far they may be off

_Tally = dict[PromptKey, tuple[float, int]]
"""Sum and number of a measure's values, by prompt."""


def _tally(measure: Measure, judged: JudgedSet, records: Sequence[ClipRecord]) -> _Tally:
    """Sums of the values of clips, or, where clips have none of that measure, the values of prompts."""
    found: _Tally = {}
    for key, group in group_by_prompt(records).items():
        values = [record.values[measure.key] for record in group if record.values.get(measure.key) is not None]
        if values:
            found[key] = (float(sum(values)), len(values))
    if found:
        return found
    of_prompts = {key: each.get(measure.key) for key, each in judged.prompt_values.items()}
    return {key: (value, 1) for key, value in of_prompts.items() if value is not None}


def _paired_tallies(
    measure: Measure, subject: JudgedSet, reference: JudgedSet, pairs: Sequence[tuple[ClipRecord, ClipRecord]]
) -> tuple[_Tally, _Tally]:
    """Tallies of those pairs of which both have a value, or the prompts that have one in both sets, in one order."""
    full = [pair for pair in pairs if all(record.values.get(measure.key) is not None for record in pair)]
    own = _tally(measure, subject, [pair[0] for pair in full])
    theirs = _tally(measure, reference, [pair[1] for pair in full])
    common = [key for key in own if key in theirs]
    return {key: own[key] for key in common}, {key: theirs[key] for key in common}


def _difference(measure: Measure, subject: _Tally, reference: _Tally, *, paired: bool, seed: int) -> Difference:
    own, theirs = (np.array(list(tally.values())) for tally in (subject, reference))
    value, base = (float(sums[:, 0].sum() / sums[:, 1].sum()) for sums in (own, theirs))
    prompts, relative = min(len(own), len(theirs)), measure.limit is not None and measure.limit.relative
    floor = measure.limit.floor if measure.limit is not None else 0.0
    if relative and base <= floor:
        return Difference(measure, value, base, None, prompts)
    middle = value / base - 1 if relative else value - base
    if prompts < LEAST_PROMPTS:
        return Difference(measure, value, base, Change(middle, None, None), prompts)
    changes = []
    random = np.random.default_rng(seed)
    for _ in range(_DRAWS):
        chosen = random.integers(len(own), size=len(own))
        partner = chosen if paired else random.integers(len(theirs), size=len(theirs))
        a, b = (sums[:, 0].sum() / sums[:, 1].sum() for sums in (own[chosen], theirs[partner]))
        changes.append(a - b if not relative else a / b - 1 if b > floor else np.inf)
    low, high = np.percentile(changes, [(100 - _INTERVAL) / 2, (100 + _INTERVAL) / 2], method="lower")
    least = 3 / prompts if measure.of_yes_or_no else 0.0
    below, above = (max(least, _widening(prompts) * float(side)) for side in (middle - low, high - middle))
    return Difference(measure, value, base, Change(middle, middle - below, middle + above), prompts)


def _widening(prompts: int) -> float:
    """By how much the percentiles of so many prompts are too narrow."""
    normal = stdtrit(prompts - 1, (1 + _INTERVAL / 100) / 2) / _NORMAL
    return float(normal * (prompts / (prompts - 1)) ** 0.5)


def _as_json(difference: Difference) -> dict[str, Any]:
    change = difference.change
    return {
        "value": difference.value,
        "reference": difference.reference,
        "relative": difference.relative,
        "change": None if change is None else change.middle,
        "low": None if change is None else change.low,
        "high": None if change is None or change.high == np.inf else change.high,
        "unbounded": change is not None and change.high == np.inf,
        "prompts": difference.prompts,
        "verdict": difference.verdict,
    }
