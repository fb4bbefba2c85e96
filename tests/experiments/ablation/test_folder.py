"""What an ablation makes of its plan and of what is on disk, with rows that were written and nothing trained."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from avd.config import AblationRecipe
from avd.evaluation.provenance import NUMBERS
from avd.evaluation.rows import Row
from avd.experiments.ablation import ablation
from avd.experiments.ablation.ablation import Ablation
from avd.experiments.ablation.students import write_row
from avd.types import UserError
from helpers.tiny import tiny_model

KEY = "objective.regression.k"
AVD = {"name": "avd", "recipe": "avd"}
MakeRow = Callable[..., Row]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny"
    tiny_model().save(path)
    return path


@pytest.fixture
def make(model: Path, tmp_path: Path) -> Callable[..., Ablation]:
    """An ablation of these rows."""

    def make_one(*rows: dict[str, Any], changes: Sequence[str] = (), **options: Any) -> Ablation:
        plan = AblationRecipe.model_validate({"clips": 3, "repeats": 0, "forwards": 30, "rows": rows} | options)
        return Ablation(plan, tmp_path / "x #2", (f"model={model}", *changes))

    return make_one


def write_judged(found: Ablation, make_row: MakeRow, name: str, seeds: Sequence[int]) -> None:
    for seed in seeds:
        judged = found._judged(found._row(name), seed)
        judged.folder.mkdir(parents=True)
        write_row(judged.folder, make_row(name=name, seed=seed), [], judged.made)


def test_rows_of_seeds_that_this_command_does_not_ask_for_are_kept(
    make: Callable[..., Ablation], make_row: MakeRow
) -> None:
    rows = (AVD, {"name": "avd-2", "recipe": "avd"}, {"name": "half", "run": "avd", "sampler": "half"})
    for name in ("avd", "avd-2", "half"):
        write_judged(make(*rows), make_row, name, range(3))
    found = make(*rows, seeds=1).gather().rows
    assert [(row.name, row.seed) for row in found] == [(n, s) for n in ("avd", "avd-2", "half") for s in range(3)]


@pytest.mark.parametrize("value", [1.0, 3.0, 1e-5])
def test_a_trial_is_trained_with_the_value_that_it_is_called_by(make: Callable[..., Ablation], value: float) -> None:
    found = make(AVD | {"knob": {"key": KEY, "values": [3.0, 1.0, 1e-5]}})
    student = found._student(found.plan.rows[0], 7, value, found.output / "tuning")
    assert student.recipe.objective.section("regression").model_dump()["k"] == value
    assert student.folder.name == ("avd-7" if value == 3.0 else f"avd@{value}-7")


def test_a_start_may_lie_under_any_path(make: Callable[..., Ablation]) -> None:
    first, second = (
        AVD | {"share": 0.5},
        {"name": "b", "recipe": "avd", "share": 0.5, "starts": {"student.start": "avd"}},
    )
    found = make(first, second)
    assert found._student(found.plan.rows[1], 0, None, found.output).recipe.student.start == str(
        found.output / "avd-0" / "run"
    )


@pytest.mark.parametrize(
    ("row", "changes", "fault"),
    [
        (AVD | {"knob": {"key": KEY, "values": [1.0, 3.0]}}, [], "row avd has another objective.regression.k than 1.0"),
        (AVD | {"knob": {"key": KEY, "values": [3.0, 1.0]}}, [f"{KEY}=7"], f"--set {KEY} changes the knob of row avd"),
    ],
)
def test_knobs_that_would_be_trained_as_something_else_are_refused(
    row: dict[str, Any], changes: list[str], fault: str, make: Callable[..., Ablation]
) -> None:
    with pytest.raises(UserError, match=fault):
        run(make(row, changes=changes))
    assert not (make(row).output).exists()


def test_a_plan_of_curves_alone_has_a_world_and_needs_names(make: Callable[..., Ablation]) -> None:
    found = make(curves=[{"name": "k", "recipe": "avd", "key": KEY, "values": [1.0, 3.0]}])
    assert found.gather().rows == [] and found.fps == 8
    with pytest.raises(UserError, match="name some of them"):
        run(found)


def test_trials_that_fail_keep_no_row_from_being_judged(
    make: Callable[..., Ablation], monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = []

    def fail(jobs: Sequence[object], *args: object, **options: object) -> None:
        counts.append(len(jobs))
        raise UserError(f"{len(counts)} failed")

    monkeypatch.setattr(ablation, "work", fail)
    with pytest.raises(UserError, match="1 failed"):
        run(make(AVD, seeds=1), tune=True)
    assert counts == [1, 1, 3]  # rendered clips, again, and with the run and its row


def run(found: Ablation, tune: bool = False) -> None:
    found.run([], tune=tune, bars=None, say=print)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changed", "fault"),
    [
        ({"forwards": 60}, "training.updates = "),
        ({"clips": 2}, "judging.clips = 3, now it is 2"),
        ({"changes": ["objective.regression.k=7"]}, "objective.regression.k = 3.0, now it is 7.0"),
        ({"name": "later"}, "starts.avd-0.recipe.training.updates = "),
    ],
)
def test_rows_that_were_made_otherwise_are_refused(
    changed: dict[str, Any], fault: str, make: Callable[..., Ablation], make_row: MakeRow
) -> None:
    later = {"name": "later", "recipe": "avd", "updates": 1, "starts": {"student.start": "avd"}}
    write_judged(make(AVD, later), make_row, changed.get("name", "avd"), [0])
    assert len(make(AVD, later).gather().rows) == 1
    again = make(AVD, later, **({"forwards": 60} if "name" in changed else changed))
    with pytest.raises(UserError, match=fault) as error:
        run(again)
    assert "row.json was made with" in str(error.value)


def test_a_key_that_is_newer_than_a_row_stands_for_its_default(
    make: Callable[..., Ablation], make_row: MakeRow
) -> None:
    write_judged(make(AVD), make_row, "avd", [0])
    file = make(AVD).output / "avd-0" / "row.json"
    content = json.loads(file.read_text())
    del content["meta"]["made"]["recipe"]["rollout"]["half_rate_stages"]
    file.write_text(json.dumps(content))
    assert len(make(AVD).gather().rows) == 1
    del content["meta"]["made"]
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"row\.json was made with"):
        make(AVD).gather()


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"forwards": 60}, "training.updates = "),
        ({"clips": 2}, "judging.without = 3, now it is 2"),
        ({}, "trials of row avd are stale"),
    ],
)
def test_trials_of_other_settings_decide_nothing(
    options: dict[str, int],
    fault: str,
    make: Callable[..., Ablation],
    make_row: MakeRow,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tuned = AVD | {"knob": {"key": KEY, "values": [3.0, 1.0]}}
    found = make(tuned)
    (trial,) = found._trial_rows(found.plan.rows[0], 1.0)
    trial.folder.mkdir(parents=True)
    write_row(trial.folder, make_row(name="avd", numbers=NUMBERS if options else NUMBERS - 1), [], trial.made)
    with pytest.raises(UserError, match=fault):
        run(make(tuned, **options))


def test_samples_left_by_a_kill_go_when_the_row_is_met_again(make: Callable[..., Ablation], make_row: MakeRow) -> None:
    found = make({"name": "teacher", "recipe": "avd", "sampler": "many"})
    write_judged(found, make_row, "teacher", [0])
    judged = found._judged(found.plan.rows[0], 0)
    for name in ("samples", "records-world"):
        (judged.folder / name).mkdir()
    assert not judged.is_done()
    judged.do(None, print)  # type: ignore[arg-type]
    assert judged.is_done() and [path.name for path in judged.folder.iterdir()] == ["row.json"]
