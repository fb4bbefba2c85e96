"""Which clips to look at: those that are worst by a measure, each with what to hold it against.

How bad a clip is follows from the measure's limit: where only more is a fault, by how much more it has than its
partner, where only less is, by how much less, else by how far it is either way. The partner is the reference's clip of
the same prompt and repeat; of sets that are not paired the reference's most ordinary clip; without a reference there is
none, and clips are held against the median of their own set. Of measures that compare the clips of one prompt, the
worst prompts are found in the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from avd.evaluation.comparison import JudgedSet, SetComparison
from avd.evaluation.suite import ClipRecord, Limit, Measure, group_by_prompt

_CLIPS_OF_PROMPT = 2
"""Clips that are shown of a prompt whose clips are compared with each other."""


@dataclass(frozen=True)
class BadClips:
    """Clips of one prompt that are bad by a measure, and what they are held against; `partners` may be empty."""

    clips: tuple[ClipRecord, ...]
    value: float
    partners: tuple[ClipRecord, ...]
    partner_value: float | None


def worst_pairs(measure: Measure, comparison: SetComparison, count: int) -> list[BadClips]:
    """At most `count` of the subject of a comparison, the worst first; none that are no worse than the reference's."""
    found = _of_prompts(measure, comparison.subject, comparison.reference) or (
        _of_unpaired(measure, comparison) if comparison.pairs is None else _of_pairs(measure, comparison.pairs)
    )
    return _worst(measure, found, 0.0, count)


def worst_alone(measure: Measure, judged: JudgedSet, count: int) -> list[BadClips]:
    """Likewise of a set without a reference, against its own median."""
    found = _of_prompts(measure, judged, None)
    found = found or [
        BadClips((each,), each.values[measure.key], (), None) for each in _having(measure, judged.records)
    ]
    return _worst(measure, found, median(each.value for each in found), count) if found else []


def _of_pairs(measure: Measure, pairs: Sequence[tuple[ClipRecord, ClipRecord]]) -> list[BadClips]:
    return [
        BadClips((own,), own.values[measure.key], (theirs,), theirs.values[measure.key])
        for own, theirs in pairs
        if len(_having(measure, (own, theirs))) == 2
    ]


def _of_unpaired(measure: Measure, comparison: SetComparison) -> list[BadClips]:
    references = _having(measure, comparison.reference.records)
    if not references:
        return []
    middle = median(each.values[measure.key] for each in references)
    ordinary = min(references, key=lambda each: abs(each.values[measure.key] - middle))
    return [
        BadClips((each,), each.values[measure.key], (ordinary,), ordinary.values[measure.key])
        for each in _having(measure, comparison.subject.records)
    ]


def _of_prompts(measure: Measure, judged: JudgedSet, reference: JudgedSet | None) -> list[BadClips]:
    """The prompts for which both sets have a value of a measure that compares a prompt's clips."""
    own = group_by_prompt(judged.records)
    theirs = {} if reference is None else group_by_prompt(reference.records)
    found = []
    for key, values in judged.prompt_values.items():
        value = values.get(measure.key)
        partner = None if reference is None else reference.prompt_values.get(key, {}).get(measure.key)
        if value is not None and (reference is None or partner is not None):
            partners = tuple(theirs.get(key, ())[:_CLIPS_OF_PROMPT])
            found.append(BadClips(tuple(own[key][:_CLIPS_OF_PROMPT]), value, partners, partner))
    return found


def _worst(measure: Measure, found: Sequence[BadClips], middle: float, count: int) -> list[BadClips]:
    """Where there is no value to hold clips against, `middle` stands in."""

    def badness(bad: BadClips) -> float:
        return _badness(bad.value - (middle if bad.partner_value is None else bad.partner_value), measure.limit)

    ordered = sorted(found, key=badness, reverse=True)
    return [bad for bad in ordered[:count] if badness(bad) > 0]


def _badness(change: float, limit: Limit | None) -> float:
    if limit is None or (limit.low is None) == (limit.high is None):
        return abs(change)
    return change if limit.low is None else -change


def _having(measure: Measure, records: Sequence[ClipRecord]) -> list[ClipRecord]:
    """Those that have a value of the measure."""
    return [record for record in records if record.values.get(measure.key) is not None]
