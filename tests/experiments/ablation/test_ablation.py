"""The complete command on a tiny model: two rows and two seeds, tuned, killed, resumed, shared by two processes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from avd.config import load_recipe
from avd.distillation.numbers import NUMBERS
from avd.evaluation.rows import Row, read_results
from avd.experiments.ablation import students
from avd.methods.method import Method
from avd.models.family import read_facts
from avd.report.ablation import BEGIN, END
from helpers import killing
from helpers.command import avd
from helpers.tiny import tiny_interpolator, tiny_model

pytestmark = pytest.mark.usefixtures("one_thread")

PLAN = """
kind: ablation
clips: 3
repeats: 0
shown: 1
seeds: 2
forwards: 26
tuning: {seeds: [7], clips: 2}
rows:
  - {name: teacher, recipe: dmd, sampler: many, paper: {name: Teacher, dynamic_degree: 0.8}}
  - name: dmd
    recipe: dmd
    paper: {name: DMD, dynamic_degree: 0.7}
    knob: {key: objective.distribution_matching.guidance, values: [5.0, 3.0]}
  - {name: dmd at half rate, run: dmd, sampler: half}
  - {name: longer, recipe: dmd, updates: 1, starts: {student.start: dmd, fake_score.start: dmd}}
  - {name: high, recipe: phased-dmd-high, updates: 1, shown: false}
  - {name: experts, recipe: phased-dmd-low, updates: 1, starts: {experts.high: high}}
orderings: [[dmd, teacher]]
comparisons: [[longer, dmd]]
curves: [{name: of k, recipe: avd, key: objective.regression.k, values: [1.0, 3.0]}]
"""
COMMAND = Callable[..., int]


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> COMMAND:
    """`avd ablate` of the plan above on a tiny model, in a folder."""
    folder = tmp_path_factory.mktemp("plan")
    tiny_model().save(folder / "tiny")
    tiny_interpolator().save(folder / "tiny" / "interpolator")
    (folder / "plan.yaml").write_text(PLAN)
    changes = [f"model={folder / 'tiny'}", "data.world_clips=4", "training.batch=2"]
    options = [word for change in changes for word in ("--set", change)]

    def run(output: Path, *words: object, plan: Path = folder / "plan.yaml") -> int:
        return avd("ablate", plan, "--output", output, *options, *words)

    return run


@pytest.fixture(scope="module")
def output(command: COMMAND, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ablation")
    torch.set_num_threads(1)
    assert command(folder, "--tune") == 0
    return folder


def scores(rows: list[Row]) -> dict[tuple[str, int], Any]:
    return {(row.name, row.seed): row.scores for row in rows}


def test_every_row_and_seed_is_judged_by_both_suites_with_errors(output: Path) -> None:
    rows = read_results(output / "results.json").rows
    names = ["teacher", "dmd", "dmd at half rate", "longer", "experts"]
    assert list(scores(rows)) == [("rendered clips", 0), *((name, seed) for name in names for seed in (0, 1))]
    assert all(list(row.scores) == ["world", "native"] and row.videos == 3 for row in rows)
    assert all(row.error("world", "dynamic_degree") is not None for row in rows)
    assert [row.network_calls for row in rows[1::2]] == [8, 4, 4, 4, 4]
    assert all(row.teacher is not None and row.numbers is not None for row in rows[1:])
    assert not list(output.rglob("records-*")) and not list(output.rglob("clip-*"))


def test_what_training_cost_is_kept_with_what_came_before(output: Path) -> None:
    rows = {(row.name, row.seed): row.training for row in read_results(output / "results.json").rows}
    each = Method.of(load_recipe("dmd")).forwards(4)
    own, later = rows["dmd", 1], rows["longer", 1]
    assert own is not None and later is not None and rows["teacher", 0] is None
    assert (own.updates, own.forwards) == (round(26 / each), round(26 / each) * each)
    assert (later.updates, later.forwards) == (1, own.forwards + each) and later.seconds > own.seconds
    assert rows["dmd at half rate", 1] == own


def test_a_student_of_two_experts_is_the_pair_of_two_runs_and_has_cost_both(output: Path) -> None:
    (row,) = (row for row in read_results(output / "results.json").rows if (row.name, row.seed) == ("experts", 1))
    assert read_facts(str(output / "experts-1" / "run" / "student")).settings.high_stages == 2
    assert load_recipe(str(output / "experts-1" / "run" / "recipe.yaml")).experts.high == str(output / "high-1" / "run")
    both = sum(Method.of(load_recipe(f"phased-dmd-{name}")).forwards(2) for name in ("high", "low"))
    assert row.training is not None and row.training.forwards == both
    assert not (output / "high-1" / "row.json").exists()


def test_an_expert_of_high_noise_is_not_judged_by_itself(
    command: COMMAND, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    plan = tmp_path / "plan.yaml"
    plan.write_text("kind: ablation\nrows: [{name: high, recipe: phased-dmd-high}]\n")
    assert command(tmp_path / "output", plan=plan) == 2
    assert "phased-dmd-high trains an expert of high noise" in " ".join(capfd.readouterr().err.split())
    assert not list((tmp_path / "output").glob("high-*"))


def test_the_knob_is_tuned_on_other_captions_and_seeds_by_the_rule(output: Path) -> None:
    knob = json.loads((output / "results.json").read_text())["meta"]["knobs"]["dmd"]
    assert [trial["value"] for trial in knob["trials"]] == [5.0, 3.0]
    assert {path.name for path in (output / "tuning").iterdir()} == {"rendered", "dmd-7", "dmd@3.0-7"}
    judged = "dmd" if knob["value"] == 5.0 else "dmd@3.0"
    assert (output / f"{judged}-0" / "row.json").exists()


def test_the_page_and_the_orderings_are_there(output: Path) -> None:
    assert "<video" in (output / "ablation.html").read_text()
    meta = json.loads((output / "results.json").read_text())["meta"]
    (sentence,) = meta["orderings"]
    assert sentence["rows"] == ["dmd", "teacher"]
    assert sentence["text"].startswith("dmd against teacher, dynamic degree: the paper has -10.0 points, here ")
    assert meta["untuned"] == ["longer", "experts"]
    assert [each["rows"] for each in meta["comparisons"]] == [["longer", "dmd"]] * 4
    assert "longer untuned." in meta["comparisons"][0]["text"]


def test_killed_anywhere_and_resumed_by_two_processes_it_has_the_same_rows(
    command: COMMAND, output: Path, tmp_path: Path
) -> None:
    names = ("teacher", "dmd")
    words = ("--rows", ",".join(names))
    shutil.copytree(output / "tuning", tmp_path / "tuning")

    def killed() -> int:
        killing.before(students, "write_row", 3)  # the rendered clips and the teacher are written, dmd is judged
        return command(tmp_path, *words)

    assert killing.in_a_fork(killed) == -9
    assert not (tmp_path / "ablation.html").exists()
    assert killing.in_forks([lambda: command(tmp_path, *words)] * 2) == [0, 0]
    found, expected = read_results(tmp_path / "results.json").rows, read_results(output / "results.json").rows
    assert scores(found) == scores([row for row in expected if row.name in ("rendered clips", *names)])


def test_a_curve_is_run_by_its_name_and_has_a_table_of_its_own(command: COMMAND, output: Path, tmp_path: Path) -> None:
    shutil.copytree(output / "rendered", tmp_path / "rendered")
    assert command(tmp_path, "--rows", "of k", "--seeds", 1) == 0
    names = [row.name for row in read_results(tmp_path / "results.json").rows]
    assert names == ["rendered clips", "of k 1.0", "of k 3.0"]
    page = tmp_path / "page.md"
    page.write_text(f"{BEGIN}\n{END}\n")
    assert command(tmp_path, "--report", page) == 0
    table = page.read_text().partition("**Curve of k: avd by `objective.regression.k`**")[2]
    assert "| 1.0 |" in table and "| 3.0 |" in table
    assert "of k 1.0" not in page.read_text().partition("**Training**")[0]


def test_a_student_of_older_code_is_stale_though_it_is_judged_today(
    command: COMMAND, output: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "all"
    shutil.copytree(output, folder)
    assert {row.numbers for row in read_results(folder / "results.json").rows} == {NUMBERS}
    (run,) = (path for path in (folder / "dmd-0", folder / "dmd@3.0-0") if path.exists())
    (run / "run" / "numbers.json").write_text(json.dumps({"numbers": NUMBERS - 1}))
    for row in (run, folder / "longer-0"):
        (row / "row.json").unlink()
    assert command(folder, "--rows", "dmd,longer") == 0
    found = {(row.name, row.seed): row.numbers for row in read_results(folder / "results.json").rows}
    assert found["dmd", 0] == found["longer", 0] == NUMBERS - 1 and found["dmd", 1] == NUMBERS


def test_run_again_it_does_nothing(command: COMMAND, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise AssertionError("this was done before")

    for name in ("train", "sample_clips", "judge"):
        monkeypatch.setattr(students, name, refuse)
    before = read_results(output / "results.json")
    assert command(output) == 0
    assert read_results(output / "results.json") == before


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (["--rows", "dmd,dmb"], "there is no row dmb: the plan has teacher, dmd"),
        (["--clips", 2], "was made with judging.clips = 3, now it is 2"),
        (["--forwards", 100], "was made with recipe.training.updates = 1, now it is 4"),
    ],
)
def test_mistakes_are_refused_in_a_line(
    words: list[object], fault: str, command: COMMAND, output: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert command(output, *words) == 2
    assert fault in " ".join(capfd.readouterr().err.split())


def test_the_tables_go_between_the_marks_of_a_page(command: COMMAND, output: Path, tmp_path: Path) -> None:
    page = tmp_path / "RESULTS.md"
    page.write_text("# Mine\n")
    assert command(output, "--report", page) == 2 and page.read_text() == "# Mine\n"
    assert command(tmp_path / "none", "--report", page) == 2
    page.write_text(
        "before\n<!-- avd ablate --report -->\nold\n<!-- end of what avd ablate --report writes -->\nafter\n"
    )
    assert command(output, "--report", page) == 0
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "\nold\n" not in text
    assert all(part in text for part in ("**Suite world**", "**Suite native**", "| dmd at half rate |", "**Tuned**"))
    assert command(output, "--report", page) == 0 and page.read_text() == text
