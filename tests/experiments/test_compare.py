"""A comparison on a tiny model: its rows, and that it does nothing twice."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from avd import ui
from avd.config import Recipe, load_recipe
from avd.evaluation.rows import read_results
from avd.experiments import compare
from avd.experiments.compare import Comparison, run_comparison
from avd.types import UserError
from helpers.command import snapshot
from helpers.tiny import tiny_interpolator, tiny_model

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def recipes(tmp_path_factory: pytest.TempPathFactory) -> list[Recipe]:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    tiny_model().save(folder)
    tiny_interpolator().save(folder / "interpolator")
    changes = [f"model={folder}", "data.world_clips=4", "training.updates=1", "training.batch=2"]
    return [load_recipe(name, [*changes, f"seed={seed}"]) for seed in (0, 1) for name in ("dmd", "avd")]


def run(recipes: list[Recipe], output: Path) -> Comparison:
    return run_comparison(recipes, output, clips=3, repeats=0, half_rate=True, bars=ui.bars, say=lambda line: None)


@pytest.fixture(scope="module")
def output(recipes: list[Recipe], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compare")
    torch.set_num_threads(1)
    run(recipes, folder)
    return folder


def test_the_rows_are_all_there_with_the_seeds_of_a_name_together(output: Path, recipes: list[Recipe]) -> None:
    rows = read_results(output / "results.json").rows
    names = ["teacher, 4x2", "teacher, cut to 4", "dmd", "dmd, half rate", "avd", "avd, half rate"]
    expected = [("rendered clips", 0), *((name, seed) for name in names for seed in (0, 1))]
    assert [(row.name, row.seed) for row in rows] == expected
    assert [row.network_calls for row in rows[1:5:2]] == [8, 4]
    assert [row.recipe and row.recipe["seed"] for row in rows[5:7]] == [0, 1]
    assert all(row.recipe is None for row in rows[:5])
    assert all(row.videos == 3 for row in rows)
    assert not [path for path in output.rglob("*samples*") if path.name != "samples"]  # nothing is left of sampling


def test_run_again_it_shows_the_same_and_samples_nothing(
    output: Path, recipes: list[Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise AssertionError("this was done before")

    monkeypatch.setattr(compare, "train", refuse)
    monkeypatch.setattr(compare, "measure", refuse)
    before = snapshot(output)
    found = run(recipes, output)
    assert {path: digest for path, digest in snapshot(output).items() if path != "results.json"} == {
        path: digest for path, digest in before.items() if path != "results.json"
    }
    assert found.results.rows[1:] == read_results(output / "results.json").rows[1:]
    assert [name for name, _ in found.shown] == list(dict.fromkeys(row.name for row in found.results.rows))
    assert len(found.captions) == 3
    assert all(np.shape(clips) == (3, 17, 16, 16, 3) for _, clips in found.shown)


def test_a_lost_row_is_measured_again_to_the_same_values(output: Path, recipes: list[Recipe], tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(output, copy)
    (copy / "avd-1" / "row-half.json").unlink()
    before, after = read_results(output / "results.json").rows, run(recipes, copy).results.rows
    assert [row.scores for row in after] == [row.scores for row in before]
    assert sum(a.seconds_per_video != b.seconds_per_video for a, b in zip(after, before, strict=True)) <= 1


def test_what_is_there_with_another_budget_is_refused(output: Path, recipes: list[Recipe]) -> None:
    before = snapshot(output)
    training = recipes[0].training.model_copy(update={"updates": 2})
    with pytest.raises(UserError, match="is finished, after 1 updates, not 2"):
        run([recipes[0].model_copy(update={"training": training})], output)
    with pytest.raises(UserError, match="is over 3 clips, not 2"):
        run_comparison(recipes, output, clips=2, repeats=0, half_rate=True, bars=ui.bars, say=lambda line: None)
    assert snapshot(output) == before


def test_a_model_whose_clips_are_not_the_worlds_is_refused_before_anything_is_made(
    recipes: list[Recipe], tmp_path: Path
) -> None:
    model = tiny_model()
    model.save(tmp_path / "wide", width=32)
    wide = recipes[0].model_copy(update={"model": str(tmp_path / "wide")})
    with pytest.raises(UserError, match="16 x 32"):
        run([wide], tmp_path / "output")
    assert not (tmp_path / "output").exists()


def test_an_expert_of_high_noise_is_refused_before_it_is_trained(recipes: list[Recipe], tmp_path: Path) -> None:
    high = load_recipe("phased-dmd-high", [f"model={recipes[0].model}"])
    with pytest.raises(UserError, match="phased-dmd-high trains an expert of high noise"):
        run([recipes[0], high], tmp_path / "output")
    assert not (tmp_path / "output").exists()
