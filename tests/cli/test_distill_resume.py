"""`avd distill`, killed at any moment and resumed, gives the student of a run never killed, bit for bit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.command import avd, snapshot
from helpers.kill_and_resume import MOMENTS, UPDATES


@pytest.fixture(scope="module")
def never_killed(place: Path) -> Path:
    run = place / "never-killed"
    assert avd("distill", "small.yaml", "--output", run, "--updates", UPDATES) == 0
    return run


@pytest.fixture(scope="module")
def killed(place: Path) -> Path:
    """Holds a run for each moment, killed there and resumed."""
    command = [sys.executable, "-m", "helpers.kill_and_resume", str(place / "killed"), *MOMENTS]
    subprocess.run(command, check=True, timeout=600)
    return place / "killed"


def updates(run: Path) -> list[int]:
    return [json.loads(line)["update"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def names(folder: Path) -> list[str]:
    return sorted(part.name for part in folder.iterdir())


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_and_resumed_is_never_killed(moment: str, killed: Path, never_killed: Path) -> None:
    run = killed / moment
    student = snapshot(run / "student")
    assert any(name.endswith(".safetensors") for name in student)
    assert student == snapshot(never_killed / "student")
    assert updates(run) == list(range(UPDATES))
    for folder in (".", "checkpoints"):
        assert names(run / folder) == names(never_killed / folder)


def test_a_finished_run_is_refused_without_resume(never_killed: Path) -> None:
    before = snapshot(never_killed)
    assert avd("distill", "small.yaml", "--output", never_killed, "--updates", UPDATES + 2) == 2
    assert snapshot(never_killed) == before


def test_a_finished_run_resumed_is_left_as_it_is(never_killed: Path) -> None:
    before = snapshot(never_killed)
    assert avd("distill", "small.yaml", "--output", never_killed, "--updates", UPDATES, "--resume") == 0
    assert snapshot(never_killed) == before


def test_a_finished_run_resumes_to_more_updates(never_killed: Path, place: Path) -> None:
    run = place / "longer"
    assert avd("distill", "small.yaml", "--output", run) == 0
    assert updates(run) == [0, 1]
    assert avd("distill", "small.yaml", "--output", run, "--updates", UPDATES, "--resume") == 0
    assert updates(run) == list(range(UPDATES))
    assert snapshot(run / "student") == snapshot(never_killed / "student")


def test_a_run_folder_holds_what_it_should(never_killed: Path) -> None:
    names = {part.name for part in never_killed.iterdir() if part.name != ".lock"}
    assert names == {
        "recipe.yaml",
        "data.json",
        "model.json",
        "numbers.json",
        "student.json",
        "metrics.jsonl",
        "references.json",
        "checkpoints",
        "samples",
        "student",
    }
    assert [part.name for part in sorted((never_killed / "checkpoints").iterdir())] == ["step-0000003", "step-0000004"]
    assert [part.name for part in (never_killed / "samples").iterdir()] == ["update-000004.mp4"]
