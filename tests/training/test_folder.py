"""Run folders: nobody's files are lost, and metrics are one line an update."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from avd.training.folder import RECIPE_FILE, RunFolder, write_text
from avd.types import UserError


def snapshot(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


@pytest.fixture
def taken(tmp_path: Path) -> Path:
    """A folder that holds a run."""
    folder = RunFolder(tmp_path / "run", resume=False, recipe_text="seed: 1\n")
    folder.log(0, {"loss": 1.0})
    return folder.path


@pytest.mark.parametrize("resume", [False, True])
def test_a_new_folder_is_laid_out(tmp_path: Path, resume: bool) -> None:
    folder = RunFolder(tmp_path / "deep" / "run", resume=resume, recipe_text="seed: 1\n")
    assert (folder.path / RECIPE_FILE).read_text() == "seed: 1\n"
    assert folder.checkpoints.is_dir() and folder.samples.is_dir()


def test_an_empty_folder_is_free(tmp_path: Path) -> None:
    assert RunFolder(tmp_path, resume=False, recipe_text="").samples.is_dir()


def test_a_taken_folder_is_refused_and_unchanged(taken: Path) -> None:
    before = snapshot(taken)
    with pytest.raises(UserError, match="add --resume"):
        RunFolder(taken, resume=False, recipe_text="seed: 2\n")
    assert snapshot(taken) == before


def test_a_taken_folder_is_opened_to_resume_and_loses_nothing(taken: Path) -> None:
    before = snapshot(taken)
    RunFolder(taken, resume=True, recipe_text="seed: 1\n")
    assert snapshot(taken) == before


@pytest.mark.parametrize("resume", [False, True])
def test_a_foreign_folder_is_refused_and_unchanged(tmp_path: Path, resume: bool) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="not a run of avd"):
        RunFolder(tmp_path, resume=resume, recipe_text="")
    assert snapshot(tmp_path) == {"thesis.tex": b"years of work"}


def test_a_file_is_refused_and_unchanged(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(UserError, match="is a file"):
        RunFolder(tmp_path / "out", resume=True, recipe_text="")
    assert (tmp_path / "out").read_text() == "mine"


def updates(folder: RunFolder) -> list[int]:
    return [json.loads(line)["update"] for line in folder.metrics.read_text().splitlines()]


@pytest.mark.parametrize("tail", ["", '{"update": 5, "lo', '{"update": 5, "loss": 1.0}', '{"upd\n', "\x00\x00\x00"])
def test_metrics_go_back_to_the_checkpoint_without_gaps_or_doubles(tmp_path: Path, tail: str) -> None:
    folder = RunFolder(tmp_path, resume=False, recipe_text="")
    for n in range(5):
        folder.log(n, {"loss": float(n)})
    with folder.metrics.open("a") as file:
        file.write(tail)
    folder.rewind_metrics(3)
    for n in range(3, 6):
        folder.log(n, {"loss": float(n)})
    assert updates(folder) == [0, 1, 2, 3, 4, 5]


def test_a_whole_last_line_without_its_newline_is_kept(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, resume=False, recipe_text="")
    folder.metrics.write_text('{"update": 0}\n{"update": 1}')
    folder.rewind_metrics(2)
    folder.log(2, {})
    assert updates(folder) == [0, 1, 2]


def test_there_may_be_no_metrics_yet(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, resume=False, recipe_text="")
    folder.rewind_metrics(0)
    assert not folder.metrics.exists()


def test_a_write_replaces_the_whole_file(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "long old text")
    write_text(tmp_path / "a.txt", "new")
    assert snapshot(tmp_path) == {"a.txt": b"new"}
