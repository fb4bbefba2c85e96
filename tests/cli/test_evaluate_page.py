"""`avd evaluate --page`: a comparison of videos as one page, with its worst clips."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from avd.data import write_video
from avd.types import UserError
from avd.world.damage import saturate
from helpers.command import avd
from helpers.painter import WORLD
from helpers.parsed_page import Page


def write_set(folder: Path, factor: float) -> Path:
    """A seed of each of ten prompts; colours `factor` times as strong, in the last clip more than in others."""
    for i in range(10):
        video = saturate(WORLD.clip(i, "heldout").video, factor if i < 9 or factor == 1.0 else 2 * factor)
        write_video(folder / f"prompt <{i}>-0.mp4", video, 8)
    return folder


def test_a_comparison_is_a_page(tmp_path: Path) -> None:
    student, teacher = write_set(tmp_path / "student", 1.5), write_set(tmp_path / "teacher", 1.0)
    out = ("--json", tmp_path / "row.json", "--page", tmp_path / "page.html")
    assert avd("evaluate", student, "--suite", "native", "--reference", teacher, *out) == 0
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    parsed = Page(text)
    compared = json.loads((tmp_path / "row.json").read_text())["meta"]["comparisons"]["student"]["measures"]
    cards = {re.findall(r'id="(\w+)"', card)[0]: card for card in re.split("<article", text)[1:]}
    assert list(cards) == [key for key in compared]
    for key, found in compared.items():
        assert f"{found['verdict']} (" in cards[key] or found["verdict"] == "not decided"
    worst = re.findall(r"<p>(prompt [^<]+)</p>", cards["saturation"])
    assert worst[0] == "prompt &lt;9&gt;" and "student against teacher" in text
    labels = [each["aria-label"] or "" for each in parsed.attributes("video")]
    assert {Path(label).parent.name for label in labels} == {"student", "teacher"}


def test_videos_without_a_reference_and_a_model_are_pages_too(place: Path) -> None:
    Path("prompts.txt").write_text("a cat\na dog\n")
    options = ("--suite", "native", "--prompts", "prompts.txt", "--steps", 1, "--set", "repeats=2")
    assert avd("evaluate", "tiny", *options, "--json", "tiny.json", "--page", "tiny.html") == 0
    text = Path("tiny.html").read_text(encoding="utf-8")
    assert "Furthest from the median" in text and "a cat" in text
    assert not list(Path().glob("tiny-*"))  # clips are shown before they are removed


def test_a_page_that_is_there_is_not_replaced(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    student = write_set(tmp_path / "student", 1.0)
    (tmp_path / "page.html").write_text("mine")
    out = ("--json", tmp_path / "row.json", "--page", tmp_path / "page.html")
    assert avd("evaluate", student, "--suite", "native", *out) == 2
    assert "page.html exists already" in capfd.readouterr().err and not (tmp_path / "row.json").exists()


def test_a_page_that_fails_costs_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise UserError("no page")

    monkeypatch.setattr("avd.report.ComparisonPage.write", fail)
    student = write_set(tmp_path / "student", 1.0)
    out = ("--json", tmp_path / "row.json", "--page", tmp_path / "page.html")
    assert avd("evaluate", student, "--suite", "native", *out) == 2
    assert (tmp_path / "row.json").exists()


def test_outputs_of_one_path_are_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    same = tmp_path / "same"
    student = write_set(tmp_path / "student", 1.0)
    for option in ("--csv", "--page", "--samples", "--records"):
        other = tmp_path / "student" / ".." / "same"
        assert avd("evaluate", student, "--suite", "native", "--json", same, option, other) == 2
        assert "same is named twice" in capfd.readouterr().err and not same.exists()
