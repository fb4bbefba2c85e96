"""Plots of a page as SVG: what was measured of several sets of clips, and how far they are from a reference.

Colours are classes that the page's style sheet sets, for light and dark: `set-0` is the reference's, `set-1` ... those
of the others. A plot is drawn for a width of 440 and scales with its column; text is text, so it can be searched and
read aloud. Positions are in units of the picture, y downwards.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from markupsafe import Markup

from avd.evaluation.suite import NumberFormat

_WIDTH, _MARGIN = 440.0, 10.0
_HEAD, _AREA, _GAP, _AXIS = 18.0, 30.0, 10.0, 24.0
"""Heights of a row's line of text, of its plot, of the space below it, and of the axis under all rows."""
_ROW = _HEAD + _AREA + _GAP
_DOTS, _DOT = 60, 3.0
"""Sets of at most so many clips are drawn clip by clip, as dots of this radius."""
_BINS = 36
_TICKS = 5
_MOST_PAIRS = 300
"""Where there are more pairs, every second, or every third, and so on, is drawn."""
_GAUGE_WIDTH, _GAUGE_HEIGHT = 120.0, 20.0

Limits = tuple[float | None, float | None]
"""The least and the most that a change may be; None is open."""


@dataclass(frozen=True)
class Series:
    """Values of one set of clips, and the line of text above their row. `index` chooses the colour."""

    index: int
    text: str
    values: Sequence[float]
    mean: float


@dataclass(frozen=True)
class Interval:
    """A change from the reference and its confidence interval, which may be unknown or have no upper end (`high` is
    infinite); the line of text above it; and the changes of single pairs, where clips are paired."""

    index: int
    text: str
    middle: float
    low: float | None
    high: float | None
    pairs: Sequence[float] = ()

    @property
    def ends(self) -> list[float]:
        """The ends of the interval that have a place; none if it is unknown."""
        return [end for end in (self.low, self.high) if end is not None and math.isfinite(end)]


@dataclass(frozen=True)
class Axis:
    """Takes values from `low` to `high` to the width of the picture."""

    low: float
    high: float

    width: float = _WIDTH

    @staticmethod
    def over(values: Sequence[float], format: NumberFormat) -> Axis:
        """An axis that holds all values, and beside them some room: no less than what `format` tells apart."""
        low, high = min(values), max(values)
        room = max(0.04 * (high - low), 2 * 10**-format.digits / format.scale)
        return Axis(low - room, high + room)

    def x(self, value: float) -> float:
        """The place of a value; of one beyond the axis, its end."""
        inside = min(max(value, self.low), self.high)
        return _MARGIN + (self.width - 2 * _MARGIN) * (inside - self.low) / (self.high - self.low)

    def ticks(self, format: NumberFormat) -> list[tuple[float, str]]:
        """Round numbers inside, about `_TICKS` of them, and how they are written, with the digits that they need."""
        rough = (self.high - self.low) / _TICKS
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
        numbers = [step * i for i in range(math.ceil(self.low / step), math.floor(self.high / step) + 1)]
        digits = max(0, math.ceil(-math.log10(step * format.scale) - 1e-9))
        return [(number, replace(format, digits=digits).text(number)) for number in numbers]


def draw_distributions(series: Sequence[Series], format: NumberFormat, description: str) -> Markup:
    """A row for each set: its clips as stacked dots, or where they are many as a histogram, and their mean."""
    axis = Axis.over([value for each in series for value in (*each.values, each.mean)], format)
    parts = []
    for row, each in enumerate(series):
        top = row * _ROW
        base, kind = top + _HEAD + _AREA, f"set-{each.index}"
        draw = _dots if len(each.values) <= _DOTS else _histogram
        parts += [
            _head(each.text, each.index, top),
            _line(axis.x(axis.low), base, axis.x(axis.high), base, "rule"),
            draw(axis, each.values, base, kind),
            _line(axis.x(each.mean), base - _AREA, axis.x(each.mean), base + 4, f"mean {kind}"),
        ]
    return _picture([*parts, *_axis(axis, format, len(series) * _ROW)], len(series) * _ROW + _AXIS, description)


def draw_changes(intervals: Sequence[Interval], limits: Limits, format: NumberFormat, description: str) -> Markup:
    """A row for each set: the interval of its change from the reference, with those of single pairs as faint dots.

    0 is a line, and what is within `limits` is shaded; None is open.
    """
    known = [limit for limit in limits if limit is not None]
    axis = Axis.over([0.0, *known, *(value for each in intervals for value in _extent(each))], format)
    height = len(intervals) * _ROW
    parts = []
    for row, each in enumerate(intervals):
        top, kind = row * _ROW + _HEAD, f"set-{each.index}"
        middle, bottom = top + _AREA / 2, (row + 1) * _ROW
        parts += [
            _head(each.text, each.index, row * _ROW),
            *_allowed(axis, limits, top, bottom),
            _line(axis.x(0), top, axis.x(0), bottom, "zero"),
        ]
        shown = each.pairs[:: math.ceil(len(each.pairs) / _MOST_PAIRS) or 1]
        parts += [_circle(axis.x(value), middle, 2.2, f"pair {kind}") for value in shown]
        parts += _interval(axis, each, middle)
    return _picture([*parts, *_axis(axis, format, height)], height + _AXIS, description)


def draw_gauge(interval: Interval, limits: Limits, description: str) -> Markup:
    """A change and its limits on one line, for a cell of a table: twice as far as the limits reach to either side."""
    reach = 2 * max((abs(limit) for limit in limits if limit is not None), default=0.0)
    reach = reach or max(abs(value) for value in (interval.middle, *interval.ends)) or 1.0
    axis, middle = Axis(-reach, reach, _GAUGE_WIDTH), _GAUGE_HEIGHT / 2
    parts = [*_allowed(axis, limits, 0, _GAUGE_HEIGHT), _line(axis.x(0), 0, axis.x(0), _GAUGE_HEIGHT, "zero")]
    return _picture([*parts, *_interval(axis, interval, middle)], _GAUGE_HEIGHT, description, _GAUGE_WIDTH)


def _extent(interval: Interval) -> list[float]:
    """What an axis must show: the interval, and nine tenths of the pairs."""
    ordered = sorted(interval.pairs)
    cut = len(ordered) // 20
    inner = ordered[cut : len(ordered) - cut]
    return [interval.middle, *interval.ends, *inner[:1], *inner[-1:]]


def _allowed(axis: Axis, limits: Limits, top: float, bottom: float) -> list[Markup]:
    """The shade of what is within the limits; none without any."""
    if limits == (None, None):
        return []
    low, high = limits
    left, right = axis.x(axis.low if low is None else low), axis.x(axis.high if high is None else high)
    shape = Markup('<rect class="allowed" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"/>')
    return [shape.format(left, top, max(right - left, 0.0), bottom - top)]


def _interval(axis: Axis, interval: Interval, y: float) -> list[Markup]:
    """The change as a point on its interval, which without an upper end is an arrow to the end of the axis."""
    kind = f"set-{interval.index}"
    parts = [_line(axis.x(end), y - 5, axis.x(end), y + 5, f"end {kind}") for end in interval.ends]
    if interval.low is not None and interval.high is not None:
        last = axis.x(interval.high)
        parts.append(_line(axis.x(interval.low), y, last, y, f"interval {kind}"))
        if not math.isfinite(interval.high):
            parts += [_line(last - 6, y + side, last, y, f"arrow {kind}") for side in (-5, 5)]
    return [*parts, _circle(axis.x(interval.middle), y, 4.5, f"point {kind}")]


def _dots(axis: Axis, values: Sequence[float], base: float, kind: str) -> Markup:
    """A dot per value, those of about one place on top of each other, and closer where they are many."""
    stacks: dict[int, int] = {}
    for value in values:
        place = round(axis.x(value) / (2 * _DOT))
        stacks[place] = stacks.get(place, 0) + 1
    rise = min(2 * _DOT, (_AREA - 2 * _DOT) / max(max(stacks.values(), default=1) - 1, 1))
    circles = [
        _circle(place * 2 * _DOT, base - _DOT - i * rise, _DOT - 0.4, f"dot {kind}")
        for place, count in sorted(stacks.items())
        for i in range(count)
    ]
    return Markup("").join(circles)


def _histogram(axis: Axis, values: Sequence[float], base: float, kind: str) -> Markup:
    """The outline of a histogram whose highest bin fills the row."""
    counts = [0] * _BINS
    for value in values:
        counts[min(_BINS - 1, int(_BINS * (value - axis.low) / (axis.high - axis.low)))] += 1
    width, most = (axis.x(axis.high) - axis.x(axis.low)) / _BINS, max(counts)
    points = [(axis.x(axis.low), base)]
    for i, count in enumerate(counts):
        left, top = axis.x(axis.low) + i * width, base - _AREA * count / most
        points += [(left, top), (left + width, top)]
    points.append((axis.x(axis.high), base))
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points) + "Z"
    return Markup('<path class="bars {}" d="{}"/>').format(kind, path)


def _axis(axis: Axis, format: NumberFormat, top: float) -> list[Markup]:
    """The rule below all rows, with its numbers."""
    parts = [_line(axis.x(axis.low), top, axis.x(axis.high), top, "rule")]
    for number, text in axis.ticks(format):
        x = axis.x(number)
        anchor = "start" if x < 3 * _MARGIN else "end" if x > _WIDTH - 3 * _MARGIN else "middle"
        parts.append(_line(x, top, x, top + 4, "rule"))
        shape = Markup('<text class="tick" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>')
        parts.append(shape.format(x, top + 17, anchor, text))
    return parts


def _head(text: str, index: int, top: float) -> Markup:
    """A row's line of text, behind a dot of its colour."""
    shape = Markup('<text class="head" x="{:.1f}" y="{:.1f}">{}</text>')
    return _circle(_MARGIN + 4, top + 10, 4, f"point set-{index}") + shape.format(_MARGIN + 14, top + 14, text)


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> Markup:
    shape = Markup('<line class="{}" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>')
    return shape.format(kind, x1, y1, x2, y2)


def _circle(x: float, y: float, radius: float, kind: str) -> Markup:
    return Markup('<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="{:.1f}"/>').format(kind, x, y, radius)


def _picture(parts: Sequence[Markup], height: float, description: str, width: float = _WIDTH) -> Markup:
    opening = Markup('<svg viewBox="0 0 {:g} {:g}" role="img" aria-label="{}">').format(width, height, description)
    return opening + Markup("").join(parts) + Markup("</svg>")
