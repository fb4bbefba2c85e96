"""The page of a comparison: every set, change, verdict and worst clip is on it, and nothing else is needed."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from avd.evaluation.comparison import compare_sets
from avd.evaluation.rows import Overlap, Row
from avd.evaluation.suite import Limit, Measure, NumberFormat
from avd.report.comparison_page import ComparisonPage, ShownSet
from helpers.judged import judged, shown, suite_of
from helpers.parsed_page import Page

MakeRow = Callable[..., Row]
GLOW = Measure(
    "glow", "Glow", "as the reference", "How much <it> glows.", NumberFormat(digits=1), limit=Limit(-0.1, 0.1)
)
CALM = Measure("calm", "Calm", "high", "How calm it is.", NumberFormat(digits=2))
SPREAD = Measure("spread", "Spread", "", "How seeds differ.", NumberFormat(digits=2), limit=Limit(-0.2, None))
ABSENT = replace(CALM, key="absent", title="Absent")
SUITE = suite_of(GLOW, CALM, SPREAD, ABSENT)


def make(name: str, glow: float, spread: float) -> ShownSet:
    values = {"glow": [glow + 0.1 * i for i in range(20)], "calm": [0.5] * 20}
    return shown(judged(name, values, repeats=2, prompt_values={"spread": [spread] * 10}))


@pytest.fixture
def page(tmp_path: Path, make_row: MakeRow) -> tuple[str, Page]:
    teacher, good, bad = make("teacher <50>", 5.0, 0.5), make("good & near", 5.1, 0.5), make("bad", 9.0, 0.1)
    comparisons = [compare_sets(SUITE, each.judged, teacher.judged) for each in (good, bad)]
    rows = [make_row(name=each.judged.name) for each in (teacher, good, bad)]
    path = tmp_path / "new" / "page.html"
    ComparisonPage(SUITE.measures, [good, bad], teacher, comparisons).write(path, rows, title="Students <3>")
    text = path.read_text(encoding="utf-8")
    return text, Page(text)


def test_changes_and_verdicts_are_those_of_the_comparison(page: tuple[str, Page]) -> None:
    text = " ".join(re.sub(r"<[^>]+>", " ", page[0]).split())
    assert "good &amp; near : of 2 measures with a limit 2 within the limit." in text
    assert "bad : of 2 measures with a limit 2 outside the limit." in text
    assert "against teacher &lt;50&gt; within the limit (-10 to +10 %)" in text
    assert "bad -80.0 % (-80.0 to -80.0) against teacher &lt;50&gt; outside the limit (at least -20 %)" in text
    assert "bad +0.00 (+0.00 to +0.00) against teacher &lt;50&gt;" in text  # of a measure without a limit
    assert "Absent" not in text and "How much &lt;it&gt; glows." in text


def test_each_card_has_its_plots_and_what_they_are_of(page: tuple[str, Page]) -> None:
    cards = re.split("<article", page[0])[1:]
    assert [re.findall(r'id="(\w+)"', card)[0] for card in cards] == ["glow", "calm", "spread"]
    assert all(card.count("<svg") == 2 for card in cards)
    assert "All clips" in cards[0] and "All prompts" in cards[2]
    assert "No clip is on the wrong side" in cards[1]


def test_the_worst_clips_stand_beside_the_references_and_are_embedded_once(page: tuple[str, Page]) -> None:
    text, parsed = page
    videos = json.loads(re.findall(r'<script type="application/json" id="videos">(.*?)</script>', text)[0])
    numbers = [int(each["data-clip"] or "") for each in parsed.attributes("video")]
    assert set(numbers) == set(range(len(videos))) and len(numbers) > len(videos)
    glow, spread = (re.split("<article", text)[i] for i in (1, 3))
    labels = re.findall(r'<video data-clip="\d+" aria-label="([^"]+)"', glow)
    assert len(labels) == 8  # two pairs of each student
    for own, theirs in zip(labels[::2], labels[1::2], strict=True):
        assert own.split("/")[1] == theirs.split("/")[1] and theirs.startswith("teacher")
    assert re.findall(r'aria-label="(bad/\d+.mp4)"', spread)[:2] == ["bad/0.mp4", "bad/1.mp4"]  # the seeds of a prompt


def test_the_page_needs_nothing_else(page: tuple[str, Page]) -> None:
    text, parsed = page
    assert not re.search(r"https?://|//cdn|@import|url\(", text)
    for _, attributes in parsed.tags:
        for key in ("src", "href"):
            link = attributes.get(key)
            assert link is None or link.startswith(("data:", "#"))
    anchors = {attributes["href"] for attributes in parsed.attributes("a")}
    assert anchors == {"#glow", "#calm", "#spread"}
    assert all(attributes.get("alt") for attributes in parsed.attributes("img"))


def test_without_a_reference_there_are_values_and_no_verdicts(tmp_path: Path, make_row: MakeRow) -> None:
    overlap = Overlap(prompts=9, shared=2, example="a", unread=[])
    only = make("only", 5.0, 0.5)
    ComparisonPage(SUITE.measures, [only]).write(tmp_path / "page.html", [make_row(overlap=overlap)], title="One")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "verdict within" not in text and "Furthest from the median" in text and "5.5" in text
    assert all(card.count("<svg") == 1 for card in re.split("<article", text)[1:])
    assert "2 of 9" in text
    assert Page(text).attributes("video")


def test_only_clips_that_are_shown_are_read(tmp_path: Path, make_row: MakeRow) -> None:
    read: list[str] = []
    values = judged("many", {"glow": [float(i) for i in range(200)]})
    page = ComparisonPage(suite_of(GLOW).measures, [shown(values, read)])
    page.write(tmp_path / "page.html", [make_row()], title="Many", worst=3)
    assert sorted(read) == ["many/0.mp4", "many/1.mp4", "many/199.mp4"]
    assert not list(tmp_path.glob("*.tmp")) and (tmp_path / "page.html").stat().st_size < 200_000


def test_a_change_without_an_upper_end_is_on_the_page(tmp_path: Path, make_row: MakeRow) -> None:
    """Drawn without the one prompt that glows, the reference's is 0."""
    dark = shown(judged("dark", {"glow": [0.0] * 11 + [1.0]}))
    bright = shown(judged("bright", {"glow": [2.0] * 12}))
    compared = compare_sets(SUITE, bright.judged, dark.judged)
    path = tmp_path / "page.html"
    ComparisonPage(SUITE.measures, [bright], dark, [compared]).write(path, [make_row(), make_row()], title="Grey")
    text = path.read_text(encoding="utf-8")
    assert re.search(r"bright, \+2300\.0 % \(\+\d+\.\d or more\)", text) and "arrow set-1" in text
    found = compared.as_json()["measures"]["glow"]
    assert found["low"] > 0 and found["high"] is None and found["unbounded"]
    assert found["verdict"] == "outside the limit"


def test_the_references_values_are_those_that_changes_are_from(tmp_path: Path, make_row: MakeRow) -> None:
    more = shown(judged("teacher", {"glow": [1.0, 1.0, 9.0, 9.0] * 12}, repeats=4))
    own = shown(judged("student", {"glow": [2.0] * 24}, repeats=2))
    path = tmp_path / "page.html"
    suite = suite_of(GLOW)
    page = ComparisonPage(suite.measures, [own], more, [compare_sets(suite, own.judged, more.judged)])
    page.write(path, [make_row(), make_row()], title="Partners")
    text = path.read_text(encoding="utf-8")
    assert '<td class="number theirs">1.0</td>' in text and "teacher, 1.0<" in text and "+100.0 %" in text
    assert "24 of 48 clips of teacher are partners" in text
