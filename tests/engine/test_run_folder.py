"""Run folders: nobody's files are lost, and metrics are one line per update."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from subprocess import PIPE

import pytest

from avd.config import ComputeRecipe, load_recipe
from avd.engine.run_folder import RECIPE_FILE, RunFolder, check_same_recipe
from avd.types import UserError


def locked(path: Path, *, resume: bool = False, recipe: str = "") -> RunFolder:
    folder = RunFolder(path, resume=resume, recipe_text=recipe)
    folder.lock()
    return folder


def snapshot(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


@pytest.fixture
def taken(tmp_path: Path) -> Path:
    """A folder that holds a run."""
    folder = locked(tmp_path / "run", recipe="seed: 1\n")
    folder.log(0, {"loss": 1.0})
    return folder.path


def test_a_new_folder_is_laid_out_when_it_is_claimed(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "deep" / "run", resume=False, recipe_text="seed: 1\n")
    assert not (tmp_path / "deep").exists()
    folder.lock()
    assert (folder.path / RECIPE_FILE).read_text() == "seed: 1\n"
    assert folder.checkpoints.is_dir() and folder.samples.is_dir()


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("ending", [".writing", ".partial", ".part"])  # an earlier version has left the last two
def test_an_empty_folder_is_free_and_may_be_all_that_a_killed_run_left(
    tmp_path: Path, resume: bool, ending: str
) -> None:
    (tmp_path / f"recipe.yaml{ending}").write_text("see")  # killed while it laid the folder out
    assert locked(tmp_path, resume=resume).samples.is_dir()


def test_a_folder_that_is_not_there_cannot_be_resumed(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run"):
        RunFolder(tmp_path / "rnu", resume=True, recipe_text="")
    assert snapshot(tmp_path) == {}


def test_a_taken_folder_is_refused_and_unchanged(taken: Path) -> None:
    before = snapshot(taken)
    with pytest.raises(UserError, match="add --resume"):
        RunFolder(taken, resume=False, recipe_text="seed: 2\n")
    assert snapshot(taken) == before


def test_a_taken_folder_is_opened_to_resume_and_loses_nothing(taken: Path) -> None:
    before = snapshot(taken)
    locked(taken, resume=True, recipe="seed: 1\n")
    assert snapshot(taken) == before


@pytest.mark.parametrize("resume", [False, True])
def test_a_foreign_folder_is_refused_and_unchanged(tmp_path: Path, resume: bool) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="not an avd run"):
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
    folder = locked(tmp_path)
    for n in range(5):
        folder.log(n, {"loss": float(n)})
    with folder.metrics.open("a") as file:
        file.write(tail)
    folder.rewind_metrics(3)
    for n in range(3, 6):
        folder.log(n, {"loss": float(n)})
    assert updates(folder) == [0, 1, 2, 3, 4, 5]


def test_a_full_last_line_without_its_newline_is_kept(tmp_path: Path) -> None:
    folder = locked(tmp_path)
    folder.metrics.write_text('{"update": 0}\n{"update": 1}')
    folder.rewind_metrics(2)
    folder.log(2, {})
    assert updates(folder) == [0, 1, 2]


def test_there_may_be_no_metrics_yet(tmp_path: Path) -> None:
    folder = locked(tmp_path)
    folder.rewind_metrics(0)
    assert not folder.metrics.exists()


@pytest.mark.parametrize("text", ["a: [", "- a", "\xff", "", "4", "seed: [1]"])
def test_somebody_elses_recipe_is_refused_and_unchanged(tmp_path: Path, text: str) -> None:
    (tmp_path / RECIPE_FILE).write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match="name another output folder"):
        check_same_recipe(tmp_path, load_recipe("avd"))
    assert snapshot(tmp_path) == {RECIPE_FILE: text.encode("latin-1")}


def test_a_run_that_another_process_writes_is_refused_until_it_ends(taken: Path) -> None:
    holding = (
        "import sys; from pathlib import Path; from avd.engine.run_folder import RunFolder\n"
        f"held = RunFolder(Path({str(taken)!r}), resume=True, recipe_text='seed: 1\\n')\n"
        "held.lock()\n"
        "print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", holding], stdin=PIPE, stdout=PIPE) as other:
        assert other.stdout is not None and other.stdout.readline() == b"held\n"
        before = snapshot(taken)
        with pytest.raises(UserError, match="another process is writing"):
            locked(taken, resume=True, recipe="seed: 1\n")
        assert snapshot(taken) == before
        other.kill()
    locked(taken, resume=True, recipe="seed: 1\n").release()


def test_a_released_folder_can_be_claimed_again(taken: Path) -> None:
    first = locked(taken, resume=True, recipe="seed: 1\n")
    first.lock()
    first.release()
    locked(taken, resume=True, recipe="seed: 1\n").release()


@pytest.mark.parametrize("key", sorted(ComputeRecipe.model_fields))
def test_how_a_run_is_computed_may_change_but_for_its_dtype(key: str, tmp_path: Path) -> None:
    """What is stored of a run depends on its dtype."""
    others = {"device": "cpu", "dtype": "bfloat16", "checkpointing": "full", "attention": "native"}
    recipe = load_recipe("avd")
    default = getattr(recipe.compute, key)
    other = others.get(key, not default if isinstance(default, bool) else 7)
    changed = load_recipe("avd", [f"compute.{key}={str(other).lower()}"])
    assert changed != recipe
    (tmp_path / RECIPE_FILE).write_text(recipe.to_yaml())
    if key == "dtype":
        with pytest.raises(UserError, match="began with compute"):
            check_same_recipe(tmp_path, changed)
    else:
        check_same_recipe(tmp_path, changed)
