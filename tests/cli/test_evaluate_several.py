"""`avd evaluate` of several sets against one reference: a row, a comparison and a place on the page for each."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from avd.cli.judging.clips import row_names
from avd.data import write_video
from avd.types import UserError
from avd.world.damage import saturate
from helpers.command import avd
from helpers.painter import WORLD


def write_set(folder: Path, factor: float) -> Path:
    for i in range(12):
        write_video(folder / f"prompt {i}-0.mp4", saturate(WORLD.clip(i, "heldout").video, factor), 8)
    return folder


def test_students_of_several_runs_stand_beside_their_teacher(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    near, far = write_set(tmp_path / "avd" / "clips", 1.02), write_set(tmp_path / "dmd" / "clips", 1.6)
    teacher = write_set(tmp_path / "teacher", 1.0)
    out = ("--json", tmp_path / "rows.json", "--csv", tmp_path / "clips.csv", "--page", tmp_path / "page.html")
    assert avd("evaluate", near, far, "--suite", "native", "--reference", teacher, *out) == 0
    written = json.loads((tmp_path / "rows.json").read_text())
    assert [row["name"] for row in written["rows"]] == ["avd/clips", "dmd/clips", "teacher"]
    found = {name: each["measures"]["saturation"] for name, each in written["meta"]["comparisons"].items()}
    assert [each["verdict"] for each in found.values()] == ["within the limit", "outside the limit"]
    shown = capfd.readouterr().out
    assert "avd/clips against teacher, 12 pairs" in shown and "dmd/clips against teacher, 12 pairs" in shown
    assert len((tmp_path / "clips.csv").read_text().splitlines()) == 37
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "avd/clips, dmd/clips against teacher" in text and "set-0" in text and "set-2" in text


def test_rows_are_named_apart() -> None:
    assert row_names(["runs/a/student"], [], None) == ["student"]
    assert row_names(["runs/a/student"], ["mine"], "wan-mini") == ["mine", "wan-mini"]
    assert row_names(["runs/a/student", "runs/b/student"], [], "wan-mini") == ["a/student", "b/student", "wan-mini"]
    assert row_names(["a/run/student", "b/run/student", "c"], [], None) == ["a/run/student", "b/run/student", "c"]
    assert row_names(["a/student", "b/student"], ["mine"], "c/student") == ["mine", "b/student", "c/student"]
    assert row_names(["tiny"], [], "tiny") == ["tiny", "tiny (reference)"]
    with pytest.raises(UserError, match=r"runs/a/\.\./a is named twice"):
        row_names(["runs/a", "runs/a/../a"], [], None)
    with pytest.raises(UserError, match="two rows would be called 'mine'"):
        row_names(["a", "b"], ["mine", "mine"], None)
    with pytest.raises(UserError, match="--name is given 2 times, and 1 are judged"):
        row_names(["a"], ["mine", "yours"], None)
