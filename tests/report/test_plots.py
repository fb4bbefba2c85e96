"""Plots: what is drawn stands where its value is, whatever the values are, and text is text."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from avd.evaluation.suite import NumberFormat
from avd.report.plots import Axis, Interval, Series, draw_changes, draw_distributions, draw_gauge

FORMAT = NumberFormat(digits=2)


def parts(svg: str, tag: str, kind: str) -> list[ElementTree.Element]:
    """The elements of a tag whose class begins with `kind`."""
    found = ElementTree.fromstring(svg).iter(tag)
    return [each for each in found if each.attrib.get("class", "").split(" ")[0] == kind]


def axis_of(svg: str) -> tuple[float, float]:
    """Value of x = 0 and per unit of the picture, read off the numbers under the plot."""
    places = [(float(each.attrib["x"]), float((each.text or "").split(" ")[0])) for each in parts(svg, "text", "tick")]
    (x0, v0), (x1, v1) = places[0], places[-1]
    slope = (v1 - v0) / (x1 - x0)
    return v0 - slope * x0, slope


def test_every_clip_is_a_dot_where_its_value_is() -> None:
    values = [0.1, 0.1, 0.1, 0.45, 0.9]
    svg = draw_distributions([Series(0, "teacher", values, 0.33), Series(1, "student", [0.5], 0.5)], FORMAT, "all")
    zero, slope = axis_of(svg)
    dots = parts(svg, "circle", "dot")
    assert len(dots) == 6
    read = sorted(zero + slope * float(dot.attrib["cx"]) for dot in dots if dot.attrib["class"].endswith("set-0"))
    assert read == pytest.approx(values, abs=3.0 * slope + 1e-9)  # half a dot
    stacked = [float(dot.attrib["cy"]) for dot in dots[:3]]
    assert stacked[0] > stacked[1] > stacked[2]
    (mean, other) = parts(svg, "line", "mean")
    assert zero + slope * float(mean.attrib["x1"]) == pytest.approx(0.33, abs=slope)
    assert zero + slope * float(other.attrib["x1"]) == pytest.approx(0.5, abs=slope)


def test_many_clips_are_a_histogram_whose_area_is_where_they_are() -> None:
    values = [0.2] * 300 + [0.8] * 100
    svg = draw_distributions([Series(0, "teacher", values, 0.35)], FORMAT, "all")
    assert not parts(svg, "circle", "dot")
    (bars,) = parts(svg, "path", "bars")
    points = [tuple(map(float, point.split())) for point in bars.attrib["d"].strip("MZ").split("L")]
    base = points[0][1]
    heights = [base - y for _, y in points]
    zero, slope = axis_of(svg)
    highest = zero + slope * points[heights.index(max(heights))][0]
    assert highest == pytest.approx(0.2, abs=0.03)
    assert sorted({round(height) for height in heights}) == [0, round(max(heights) / 3), round(max(heights))]


@pytest.mark.parametrize("value", [0.0, 1.0, -3.5, 1e6])
def test_equal_values_have_an_axis_too(value: float) -> None:
    axis = Axis.over([value, value], FORMAT)
    assert axis.low < value < axis.high
    texts = [text for _, text in axis.ticks(FORMAT)]
    assert len(texts) == len(set(texts)) >= 2


def test_numbers_have_the_digits_that_they_need() -> None:
    assert [text for _, text in Axis(0.0, 1.0).ticks(FORMAT)] == ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]
    assert [text for _, text in Axis(-0.11, 0.11).ticks(NumberFormat(scale=100.0, unit=" %", signed=True))] == [
        "-10 %",
        "-5 %",
        "+0 %",
        "+5 %",
        "+10 %",
    ]


def test_an_interval_stands_between_its_ends_and_the_limits_are_shaded() -> None:
    pairs = [0.05, 0.1, 0.15]
    svg = draw_changes([Interval(1, "student", 0.1, 0.08, 0.12, pairs)], (-0.2, 0.2), FORMAT, "changes")
    zero, slope = axis_of(svg)
    (interval,) = parts(svg, "line", "interval")
    ends = [zero + slope * float(interval.attrib[key]) for key in ("x1", "x2")]
    assert ends == pytest.approx([0.08, 0.12], abs=slope)
    assert len(parts(svg, "circle", "pair")) == 3
    (allowed,) = parts(svg, "rect", "allowed")
    left = zero + slope * float(allowed.attrib["x"])
    assert [left, left + slope * float(allowed.attrib["width"])] == pytest.approx([-0.2, 0.2], abs=2 * slope)
    (line,) = parts(svg, "line", "zero")
    assert zero + slope * float(line.attrib["x1"]) == pytest.approx(0.0, abs=slope)


def test_of_very_many_pairs_some_of_all_are_drawn() -> None:
    pairs = [i / 1000 for i in range(1000)]
    svg = draw_changes([Interval(1, "student", 0.5, 0.4, 0.6, pairs)], (None, None), FORMAT, "changes")
    zero, slope = axis_of(svg)
    shown = [zero + slope * float(each.attrib["cx"]) for each in parts(svg, "circle", "pair")]
    assert 200 <= len(shown) <= 300
    assert sum(value < 0.5 for value in shown) == pytest.approx(len(shown) / 2, abs=3)


def test_an_open_limit_shades_to_the_end_and_a_missing_one_nothing() -> None:
    interval = Interval(1, "student", 0.1, None, None)
    (allowed,) = parts(draw_changes([interval], (None, 0.2), FORMAT, "changes"), "rect", "allowed")
    assert float(allowed.attrib["x"]) == 10.0
    svg = draw_changes([interval], (None, None), FORMAT, "changes")
    assert not parts(svg, "rect", "allowed") and not parts(svg, "line", "interval")
    assert len(parts(svg, "circle", "point")) == 2  # of the line of text, and the change


def test_a_gauge_ends_at_twice_the_limit() -> None:
    svg = draw_gauge(Interval(1, "", 9.0, 0.0, 9.0), (-0.1, 0.2), "far")
    (point,) = parts(svg, "circle", "point")
    assert float(point.attrib["cx"]) == 110.0
    (allowed,) = parts(svg, "rect", "allowed")
    assert (float(allowed.attrib["x"]), float(allowed.attrib["width"])) == (47.5, 37.5)


def test_text_is_escaped() -> None:
    svg = draw_distributions([Series(0, '<b> & "c"', [0.5], 0.5)], FORMAT, '"><script>')
    picture = ElementTree.fromstring(svg)
    assert picture.attrib["aria-label"] == '"><script>'
    assert parts(svg, "text", "head")[0].text == '<b> & "c"'


def test_an_interval_without_an_upper_end_is_an_arrow_to_the_end_of_the_axis() -> None:
    endless = Interval(1, "student", 0.5, 0.1, float("inf"))
    for svg, width in (
        (draw_changes([endless], (-0.1, 0.1), FORMAT, "changes"), 440),
        (draw_gauge(endless, (None, None), "change"), 120),
    ):
        assert len(parts(svg, "line", "arrow")) == 2 and len(parts(svg, "line", "end")) == 1
        (interval,) = parts(svg, "line", "interval")
        assert float(interval.attrib["x2"]) == width - 10


def test_no_line_of_text_lies_on_the_shade() -> None:
    intervals = [Interval(i, "student", 0.1, 0.0, 0.2) for i in (1, 2)]
    svg = draw_changes(intervals, (-0.2, 0.2), FORMAT, "changes")
    shades = [(float(each.attrib["y"]), float(each.attrib["height"])) for each in parts(svg, "rect", "allowed")]
    texts = [float(each.attrib["y"]) for each in parts(svg, "text", "head")]
    assert len(shades) == len(texts) == 2
    assert not any(top <= text <= top + height for top, height in shades for text in texts)
