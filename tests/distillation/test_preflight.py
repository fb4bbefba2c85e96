"""A recipe, a folder and a launch become a resolved run, or a line that says why not."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from avd.config import Recipe, load_recipe
from avd.distillation.preflight import ResolvedRun, preflight, resolve_workload
from avd.methods.method import Method
from avd.models.devices import Launch
from avd.models.interpolator import FrameInterpolator, InterpolatorConfig
from avd.models.wan.files import ModelFiles
from avd.types import UserError
from helpers.command import snapshot
from helpers.tiny import LATENT_SHAPE, tiny_interpolator, tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_model().save(folder)
    tiny_interpolator().save(folder / "interpolator")
    return folder


def recipe_for(model: Path, *changes: str) -> Recipe:
    return load_recipe("avd", [f"model={model}", "training.batch=6", "compute.device=cpu", *changes])


def resolve(recipe: Recipe, output: Path, launch: Launch = Launch()) -> ResolvedRun:  # noqa: B008
    return preflight(recipe, output, resume=False, launch=launch)


def test_a_run_is_resolved_without_loading_or_writing(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ModelFiles, "load", None)
    recipe = recipe_for(model, "rollout.half_rate_stages=2", "compute.microbatch=4")
    found = resolve(recipe, tmp_path / "run")
    workload = resolve_workload(recipe, 1)
    assert workload.clips_per_rank == 6 and workload.microbatch == 4
    assert workload.method == Method.of(recipe) and workload.sizes.latent_CFHW == LATENT_SHAPE
    assert found.interpolator == model / "interpolator"
    assert found.data is None and found.world is not None and found.world.size == 16
    assert found.folder.path == tmp_path / "run" and snapshot(tmp_path) == {}


def test_a_named_interpolator_comes_before_the_model_s(model: Path, tmp_path: Path) -> None:
    """By the folder of the run that trained it, or by its own; a plan refuses one that does not fit, as a run does."""
    tiny_interpolator().save(tmp_path / "trained" / "interpolator")
    for name in (tmp_path / "trained", tmp_path / "trained" / "interpolator"):
        recipe = recipe_for(model, "rollout.half_rate_stages=2", f"interpolator={name}")
        assert resolve(recipe, tmp_path / "run").interpolator == tmp_path / "trained" / "interpolator"
    FrameInterpolator(InterpolatorConfig(3, (8, 16))).save(tmp_path / "other")
    recipe = recipe_for(model, f"interpolator={tmp_path / 'other'}")
    for refused in (lambda: resolve(recipe, tmp_path / "run"), lambda: resolve_workload(recipe, 1)):
        with pytest.raises(UserError, match=r"other is for latents of 3 channels, and those of .* have 12"):
            refused()


def test_half_resolution_needs_clips_that_halve_and_an_interpolator_of_space(model: Path, tmp_path: Path) -> None:
    """As a run and as a plan refuse it; a plan needs no interpolator unless one is named."""
    asks = "rollout.half_resolution_stages=2"
    small = recipe_for(model, asks)
    for refused in (lambda: resolve(small, tmp_path / "run"), lambda: resolve_workload(small, 1)):
        with pytest.raises(
            UserError, match=r"multiples of 32 pixels \(4 latents\), and these clips have 2 x 2 latents"
        ):
            refused()
    large = Path(shutil.copytree(model, tmp_path / "large"))
    settings = json.loads((large / "avd.json").read_text())
    (large / "avd.json").write_text(json.dumps({**settings, "height": 32, "width": 32}))
    with pytest.raises(UserError, match="fills in frames alone"):
        resolve(recipe_for(large, asks), tmp_path / "run")
    tiny_interpolator(space=True).save(tmp_path / "space")
    found = resolve(recipe_for(large, asks, f"interpolator={tmp_path / 'space'}"), tmp_path / "run")
    assert found.interpolator == tmp_path / "space"


def test_every_rank_resolves_by_itself_and_the_first_looks_at_the_folder(model: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    recipe = recipe_for(model)
    assert resolve(recipe, tmp_path, Launch(1, 2, 1)).data is None
    assert resolve_workload(recipe, 2).clips_per_rank == 3
    with pytest.raises(UserError, match="not an avd run"):
        resolve(recipe, tmp_path, Launch(0, 2, 0))


def test_terms_that_do_not_agree_are_a_users_mistake(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def disagree(recipe: Recipe) -> Method:
        raise ValueError("regression needs another fake_score than the terms before it")

    monkeypatch.setattr(Method, "of", disagree)
    recipe = recipe_for(model)
    for refused in (lambda: resolve(recipe, tmp_path / "run"), lambda: resolve_workload(recipe, 1)):
        with pytest.raises(UserError, match="recipe avd: regression needs another fake_score"):
            refused()


def test_a_folder_that_may_not_be_written_to_is_refused(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(path: Any, mode: int) -> bool:  # which root, who may run this, never meets
        return not (mode & os.W_OK and Path(path) == tmp_path)

    monkeypatch.setattr(os, "access", read_only)
    for output in (tmp_path, tmp_path / "deep" / "run"):
        with pytest.raises(UserError, match="not writable"):
            resolve(recipe_for(model), output)


def test_what_is_cheap_to_check_comes_first(model: Path, tmp_path: Path) -> None:
    """Among several mistakes the first to be named is the one that needs the least to be read."""
    changes = ["compute.shard=2", "trackers=[wandb]", "data.cache=nowhere", "rollout.half_rate_stages=2"]
    expected = ["compute.shard is 2", "tracker wandb|holds files", "holds files", "no latent cache"]
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "thesis.tex").write_text("years of work")
    folders = [tmp_path / "used"] * 3 + [tmp_path / "new"]
    for i, (message, folder) in enumerate(zip(expected, folders, strict=True)):
        with pytest.raises(UserError, match=message):
            resolve(recipe_for(model, *changes[min(i, 2) :]), folder)


def test_clips_that_the_native_monitors_cannot_measure_are_refused(tmp_path: Path) -> None:
    """By a run and by a plan; not where nothing is measured, or only pixels are."""
    model, native = tmp_path / "model", "monitors.suite=native"
    tiny = tiny_model()
    tiny.settings = replace(tiny.settings, fps=64)  # its dynamic degree compares frames 8 apart
    tiny.save(model)
    resolve_workload(recipe_for(model, native), 1)
    tiny.settings = replace(tiny.settings, fps=72)
    tiny.save(model)
    for allowed in ((), (native, "monitors.every=0")):
        resolve_workload(recipe_for(model, *allowed), 1)
    line = r"monitors.suite is native, .* \(17 frames at 72 fps: .* at least 19\): set monitors.suite=pixels"
    for refused in (lambda recipe: resolve(recipe, tmp_path / "run"), lambda recipe: resolve_workload(recipe, 1)):
        with pytest.raises(UserError, match=line):
            refused(recipe_for(model, native))
    assert not (tmp_path / "run").exists()
