"""`avd demo`: all of it on the shipped miniature."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from avd.models.wan import FAMILY
from helpers.command import avd, snapshot

FIELDS = {
    "name", "steps", "network_calls", "seconds_per_video", "scores", "videos", "seed", "recipe", "code_version",
}  # fmt: skip
MEASURES = {
    "saturation_error", "clipped_share", "dynamic_degree", "speed_ratio", "instance_preservation", "caption_accuracy",
    "flicker",
}  # fmt: skip

pytestmark = pytest.mark.skipif(not FAMILY.shipped["wan-mini"].exists(), reason="the miniature is not shipped yet")


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "demo"
    assert avd("demo", "--budget", "smoke", "--output", folder) == 0
    return folder


def test_the_rows_are_complete(demo: Path) -> None:
    rows = json.loads((demo / "results.json").read_text())["rows"]
    assert all(row.keys() >= FIELDS and row["scores"]["world"].keys() >= MEASURES for row in rows)
    calls = {row["name"]: (row["steps"], row["network_calls"]) for row in rows}
    assert list(calls.values()) == [(0, 0), (50, 100), (4, 4), (4, 4), (4, 4)]
    assert [row["recipe"] is not None for row in rows] == [False, False, False, True, True]
    assert all(0 <= row["scores"]["world"]["instance_preservation"] <= 1 for row in rows)


def test_nothing_is_left_of_sampling(demo: Path) -> None:
    assert {path.name for path in demo.iterdir()} == {"distillation", "report.html", "results.json"}


def test_the_page_is_self_contained_and_plays_every_rows_videos(demo: Path) -> None:
    page = (demo / "report.html").read_text()
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", page)
    assert page.count("data:video/mp4;base64,") >= 5


def test_a_finished_demonstration_is_shown_and_not_run_again(demo: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = snapshot(demo)
    assert avd("demo", "--budget", "smoke", "--output", demo) == 0
    shown = capfd.readouterr()
    assert "finished demonstration" in shown.err and "AVD" in shown.out
    assert snapshot(demo) == before
