from __future__ import annotations

import base64
import re
from collections.abc import Callable
from pathlib import Path

from avd.report import Results, Row, write_report
from helpers.parsed_page import Page

MakeRow = Callable[..., Row]


def write(path: Path, make_row: MakeRow) -> str:
    rows = [
        make_row(name="rendered", recipe=None, steps=0),
        make_row(diversity_colour=0.5),
        make_row(name="unseen"),
    ]
    videos = [
        ("a <b>red</b> disc & a square", {"rendered": b"one", "AVD, 4 steps": b"two"}),
        ("rest", {"rendered": b"three"}),
    ]
    write_report(path, Results(rows=rows, meta={"budget": "smoke"}), videos)
    return path.read_text(encoding="utf-8")


def test_the_videos_are_in_the_page(tmp_path: Path, make_row: MakeRow) -> None:
    page = Page(write(tmp_path / "new" / "report.html", make_row))
    videos = page.attributes("video")
    prefix = "data:video/mp4;base64,"
    assert [base64.b64decode((video["src"] or "").removeprefix(prefix)) for video in videos] == [
        b"one",
        b"two",
        b"three",
    ]
    assert all({"loop", "muted", "autoplay", "playsinline"} <= video.keys() for video in videos)


def test_the_page_needs_nothing_else(tmp_path: Path, make_row: MakeRow) -> None:
    html = write(tmp_path / "report.html", make_row)
    assert not re.search(r"https?://|//cdn|@import|url\(", html)
    page = Page(html)
    links = [attributes.get(key) for _, attributes in page.tags for key in ("src", "href")]
    assert all(link.startswith("data:") for link in links if link is not None)


def test_prompts_are_text_and_blanks_are_reported(tmp_path: Path, make_row: MakeRow) -> None:
    html = write(tmp_path / "report.html", make_row)
    assert "a &lt;b&gt;red&lt;/b&gt; disc &amp; a square" in html
    assert html.count("no video") == 1


def test_measures_and_provenance_are_shown(tmp_path: Path, make_row: MakeRow) -> None:
    html = write(tmp_path / "report.html", make_row)
    for expected in ["unseen", "75.0 %", "Diversity of colour", "weight: 0.05", "x86_64, 2 cores", "budget: smoke"]:
        assert expected in html
    assert html.count("<details>") == 2  # one recipe, shared by two rows, and the run's own facts


def test_a_page_without_videos(tmp_path: Path, make_row: MakeRow) -> None:
    write_report(tmp_path / "report.html", Results(rows=[make_row()]), [])
    assert not Page((tmp_path / "report.html").read_text(encoding="utf-8")).attributes("video")
