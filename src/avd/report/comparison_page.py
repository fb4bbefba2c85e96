"""The page of a comparison: per measure what was found of every set of clips, the verdict, and the worst clips.

One self-contained HTML file, as `avd.report.page` writes: text is escaped, plots are drawn here as SVG, and clips are
small copies. It is read on screens of any width, light and dark, and on paper.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from markupsafe import Markup

from avd.evaluation.comparison import Conclusion, Difference, JudgedSet, SetComparison
from avd.evaluation.rows import Row
from avd.evaluation.suite import ClipRecord, Measure
from avd.files import write_atomically
from avd.report.page import render_page
from avd.report.plots import Interval, Limits, Series, draw_changes, draw_distributions, draw_gauge
from avd.report.shown_clips import ShownClip, ShownClips
from avd.report.worst import BadClips, worst_alone, worst_pairs

if TYPE_CHECKING:
    from avd.data import Video

Readers = Mapping[str, Callable[[], "Video"]]
"""What decodes each clip of a set, by the clip's name."""
_COLOURS = 5
"""Colours of the style sheet; the first is the reference's."""


@dataclass(frozen=True)
class ShownSet:
    """A set of clips on a page."""

    judged: JudgedSet
    readers: Readers


@dataclass(frozen=True)
class _Group:
    """Clips of one set that are shown side by side, under the set's name and their value."""

    index: int
    text: str
    clips: list[tuple[ClipRecord, ShownClip]]


@dataclass(frozen=True)
class _Bad:
    prompt: str
    groups: list[_Group]


@dataclass(frozen=True)
class _Result:
    """A measure of a set held against the reference's: a cell of the summary, and a line of the measure's card."""

    name: str
    index: int
    value: str
    reference: str
    """The reference's, over the same clips or prompts as the change."""
    change: str
    reason: str
    """The verdict, and the limit that it follows from."""
    kind: str
    """The verdict in a word; "none" for a measure without a limit."""
    gauge: Markup | None


@dataclass(frozen=True)
class _Card:
    measure: Measure
    what: str
    """Whether a value is that of a clip or of a prompt."""
    values: list[str]
    """The means of all sets, the reference's first."""
    distribution: Markup | None
    results: list[_Result]
    changes: Markup | None
    bad: list[_Bad]


class ComparisonPage:
    """What a page shows: a reference, if there is one, and one or more sets that are held against it.

    `comparisons` has one for each set and all are with `reference`; without a reference there are none.
    """

    def __init__(
        self,
        measures: Sequence[Measure],
        sets: Sequence[ShownSet],
        reference: ShownSet | None = None,
        comparisons: Sequence[SetComparison] = (),
    ) -> None:
        assert sets and len(comparisons) == (0 if reference is None else len(sets))
        self._measures, self._reference, self._comparisons = measures, reference, comparisons
        self._sets = list(sets) if reference is None else [_partners(reference, comparisons), *sets]
        self._first = 1 if reference is None else 0
        self._clips = ShownClips()

    def write(self, path: Path, rows: Sequence[Row], *, title: str, worst: int = 2) -> None:
        """Write the page in one piece. `rows` say where the sets come from; of each measure and set the `worst` clips
        are shown. Raises UserError where a clip cannot be read."""
        cards = [card for measure in self._measures if (card := self._card(measure, worst)) is not None]
        html = render_page(
            "comparison.html",
            rows,
            title=title,
            names=[(self._index(i), each.judged.name, len(each.judged.records)) for i, each in enumerate(self._sets)],
            reference=None if self._reference is None else self._reference.judged.name,
            paired=all(comparison.pairs is not None for comparison in self._comparisons),
            cards=cards,
            tallies=[(each.subject.name, _tally_text(each), each.partners_note()) for each in self._comparisons],
            videos=Markup(json.dumps(self._clips.videos)),  # base64: nothing in it to escape
        )
        write_atomically(path, html.encode())

    def _index(self, place: int) -> int:
        """The colour of a set: the first is kept for a reference."""
        place += self._first
        return place if place == 0 else 1 + (place - 1) % (_COLOURS - 1)

    def _card(self, measure: Measure, worst: int) -> _Card | None:
        """None for a measure that no set has."""
        values = [each.judged.values(measure) for each in self._sets]
        if not any(values):
            return None
        means = [sum(each) / len(each) if each else None for each in values]
        shown = [measure.format.text(mean) for mean in means]
        series = [
            Series(self._index(i), f"{self._sets[i].judged.name}, {shown[i]}", each, mean)
            for i, (each, mean) in enumerate(zip(values, means, strict=True))
            if mean is not None
        ]
        text = f"{measure.title}: " + "; ".join(each.text for each in series)
        results, intervals = self._results(measure)
        changes = None
        if intervals:
            sentence = f"{measure.title}, change: " + "; ".join(each.text for each in intervals)
            changes = draw_changes(intervals, _limits(measure), measure.change_format, sentence)
        plot = draw_distributions(series, measure.format, text)
        what = (
            "prompts" if any(measure.key in each for each in self._sets[0].judged.prompt_values.values()) else "clips"
        )
        return _Card(measure, what, shown, plot, results, changes, self._bad(measure, worst))

    def _results(self, measure: Measure) -> tuple[list[_Result], list[Interval]]:
        """The verdicts on a measure, and the intervals of those whose change is known."""
        results, intervals = [], []
        for place, comparison in enumerate(self._comparisons, start=1):
            difference = next((each for each in comparison.differences if each.measure.key == measure.key), None)
            if difference is None:
                continue
            name, index, gauge = comparison.subject.name, self._index(place), None
            if difference.change is not None:
                change = difference.change
                pairs = _pair_changes(comparison, difference)
                text = f"{name}, {difference.change_text()}"
                interval = Interval(index, text, change.middle, change.low, change.high, pairs)
                intervals.append(interval)
                gauge = draw_gauge(interval, _limits(measure), difference.change_text())
            results.append(_result(difference, name, index, gauge))
        return results, intervals

    def _bad(self, measure: Measure, count: int) -> list[_Bad]:
        found = []
        if self._reference is None:
            for place, each in enumerate(self._sets):
                found += [self._shown(measure, bad, place) for bad in worst_alone(measure, each.judged, count)]
        for place, comparison in enumerate(self._comparisons, start=1):
            found += [self._shown(measure, bad, place) for bad in worst_pairs(measure, comparison, count)]
        return found

    def _shown(self, measure: Measure, bad: BadClips, place: int) -> _Bad:
        groups = [self._group(measure, place, bad.clips, bad.value)]
        if bad.partner_value is not None:
            groups.append(self._group(measure, 0, bad.partners, bad.partner_value))
        return _Bad(bad.clips[0].prompt.text, groups)

    def _group(self, measure: Measure, place: int, records: Sequence[ClipRecord], value: float) -> _Group:
        shown = self._sets[place]
        clips = [(each, self._clips.show(place, each.clip, shown.readers[each.clip])) for each in records]
        return _Group(self._index(place), f"{shown.judged.name}, {measure.format.text(value)}", clips)


def _partners(reference: ShownSet, comparisons: Sequence[SetComparison]) -> ShownSet:
    """The reference with the clips that its means are over, if they are the same in all comparisons."""
    first, *others = (each.reference for each in comparisons)
    alike = all(set(each.prompts) == set(first.prompts) for each in others)
    return ShownSet(first, reference.readers) if alike else reference


def _limits(measure: Measure) -> Limits:
    return (None, None) if measure.limit is None else (measure.limit.low, measure.limit.high)


def _result(difference: Difference, name: str, index: int, gauge: Markup | None) -> _Result:
    value, base = (difference.measure.format.text(each) for each in (difference.value, difference.reference))
    kind = "none" if difference.verdict is None else difference.verdict.name
    return _Result(name, index, value, base, difference.change_text(), difference.verdict_text(), kind, gauge)


def _tally_text(comparison: SetComparison) -> str:
    """How many measures have which verdict."""
    counts = Counter(each.verdict for each in comparison.differences if each.verdict is not None)
    parts = [f"{counts[verdict]} {verdict}" for verdict in Conclusion if counts[verdict]]
    return f"of {counts.total()} measures with a limit " + ", ".join(parts)


def _pair_changes(comparison: SetComparison, difference: Difference) -> list[float]:
    """The change of each pair, or of each prompt whose clips are compared, of which the change of all is the mean."""
    if comparison.pairs is None:
        return []
    key, scale = difference.measure.key, difference.reference if difference.relative else 1.0
    pairs = [(own.values.get(key), theirs.values.get(key)) for own, theirs in comparison.pairs]
    references = comparison.reference.prompt_values
    pairs += [
        (values.get(key), references[prompt].get(key))
        for prompt, values in comparison.subject.prompt_values.items()
        if prompt in references
    ]
    return [(own - theirs) / scale for own, theirs in pairs if own is not None and theirs is not None]
