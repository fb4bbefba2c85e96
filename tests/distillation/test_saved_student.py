"""Students of a run's checkpoints: the same files as a run that ended there has written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from avd.distillation.saved_student import SETTINGS_OF_RUN, open_saved_student
from avd.engine.checkpoint import SavedTensors, list_checkpoints
from avd.export import format_named
from avd.export.writing import write
from avd.models.settings import Settings
from avd.types import UserError
from helpers.checkpoints import save_sharded
from helpers.command import avd, snapshot

RUN = (
    "training.batch=2", "training.checkpoint_every=1", "training.keep_checkpoints=9", "training.sample_every=0",
    "data.world_clips=4", "fake_score.updates=1", "monitors.clips=2", "monitors.every=1", "monitors.teacher_steps=1",
    "monitors.keep_best=saturation",
)  # fmt: skip
KINDS = {
    "full": (),
    "merged": ("roles=adapters", "adapters.rank=2"),
    "lora": ("roles=adapters", "adapters.merge=false"),
}

pytestmark = pytest.mark.usefixtures("one_thread")


def distil(run: Path, updates: int, *changes: str) -> None:
    assert avd("distill", "avd", "--output", run, "--updates", updates, *(f"--set={each}" for each in changes)) == 0


def export(run: Path, which: str, output: Path, kind: str = "diffusers") -> None:
    with open_saved_student(run, which) as student:
        write(format_named(kind), output, student, verify=True)


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoints_student_has_the_files_of_a_run_that_ended_there(tmp_path: Path, kind: str) -> None:
    changes, written_as = (*RUN, *KINDS[kind]), "lora" if kind == "lora" else "diffusers"
    run = tmp_path / "run"
    distil(run, 2, *changes)
    for which, expected in (("latest", run / "student"), ("best", run / "best" / "student")):
        export(run, which, tmp_path / which, written_as)
        assert snapshot(tmp_path / which) == snapshot(expected)


def test_an_earlier_checkpoints_student_is_the_one_of_then(run: Path, tmp_path: Path) -> None:
    distil(tmp_path / "short", 1, *RUN)
    export(run, "1", tmp_path / "student")
    assert snapshot(tmp_path / "student") == snapshot(tmp_path / "short" / "student")
    assert snapshot(tmp_path / "student") != snapshot(run / "student")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run") / "run"
    distil(path, 2, *RUN)
    return path


def test_the_best_is_kept_as_averaged_weights_alone(run: Path) -> None:
    (best,) = list_checkpoints(run / "best")
    with SavedTensors(best) as saved:
        assert {name.partition(".")[0] for name in saved} == {"average"}
    assert json.loads((run / "best" / "best.json").read_text())["updates"] == int(best.name[-7:])


def test_tensors_are_read_one_by_one(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever reads them asks for each once, and for nothing but the average."""
    read: list[str] = []
    region = SavedTensors.region
    monkeypatch.setattr(
        SavedTensors, "region", lambda self, name, *where: (read.append(name), region(self, name, *where))[1]
    )
    with open_saved_student(run, "latest") as student:
        assert not read
        write(format_named("diffusers"), tmp_path / "student", student)
    assert len(read) == len(set(read)) == len(student.weights.shapes)
    assert all(name.startswith("average.") for name in read)


@pytest.mark.parametrize(
    ("which", "message"),
    [
        ("7", r"has no checkpoint 7 \(it has those of updates 1, 2\)"),
        ("newest", "neither latest nor best nor a number"),
    ],
)
def test_a_checkpoint_that_is_not_there_is_refused(run: Path, which: str, message: str) -> None:
    with pytest.raises(UserError, match=message), open_saved_student(run, which):
        pass


def copy_of_ranks(run: Path, copy: Path) -> Path:
    """A run as three ranks would have left it: the folder of its newest checkpoint."""
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("checkpoints"))
    with SavedTensors(list_checkpoints(run / "checkpoints")[-1]) as saved:
        averages = {name: saved[name] for name in saved if name.startswith("average.")}
    save_sharded(copy / "checkpoints", 2, averages, 3)
    return list_checkpoints(copy / "checkpoints")[-1]


def test_a_run_that_continues_may_remove_the_checkpoint_that_is_read(run: Path, tmp_path: Path) -> None:
    checkpoint = copy_of_ranks(run, tmp_path / "run")
    with open_saved_student(tmp_path / "run", "latest") as student:
        shutil.rmtree(checkpoint)
        write(format_named("diffusers"), tmp_path / "student", student)
    assert snapshot(tmp_path / "student") == snapshot(run / "student")


def test_a_checkpoint_that_a_run_has_just_removed_is_not_called_damaged(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = copy_of_ranks(run, tmp_path / "run")
    monkeypatch.setattr(
        "avd.distillation.saved_student.read_settings", lambda *where: shutil.rmtree(checkpoint) or Settings()
    )
    refusal = pytest.raises(UserError, match=r"step-0000002 is gone, as the run has saved newer ones since: try again")
    with refusal, open_saved_student(tmp_path / "run", "latest"):
        pass


def test_what_is_no_run_or_an_older_one_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no run of `avd distill`"), open_saved_student(tmp_path, "latest"):
        pass
    older = tmp_path / "older"
    older.mkdir()
    for name in ("recipe.yaml", "checkpoints"):
        (older / name).symlink_to(run / name)
    with pytest.raises(UserError, match=f"{SETTINGS_OF_RUN} is missing"), open_saved_student(older, "latest"):
        pass


def test_a_run_without_a_student_points_to_its_checkpoints(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    for name in ("recipe.yaml", "checkpoints", SETTINGS_OF_RUN):
        (unfinished / name).symlink_to(run / name)
    command = ("export", unfinished, "--format", "diffusers", "--output", tmp_path / "student")
    assert avd(*command) == 2
    assert "has not written its student yet: add --checkpoint latest" in capsys.readouterr().err
    assert avd(*command, "--checkpoint", "latest") == 0
    assert snapshot(tmp_path / "student") == snapshot(run / "student")
