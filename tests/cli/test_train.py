"""`avd train`: two updates of everything a model is made of, each result loaded by the next command."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml

from avd.config import InterpolatorRecipe, load
from avd.miniature import teacher, vae
from avd.models.family import load_model
from avd.models.interpolator import FrameInterpolator
from helpers.command import avd, snapshot
from helpers.processes import end_of, start_ranks

UPDATES = ("--updates", 2)


@pytest.fixture(autouse=True, scope="module")
def few_clips(place: Path) -> Iterator[None]:
    """What is measured at the end of a run is not what these tests are about."""
    with pytest.MonkeyPatch.context() as patch:
        whitening = vae.measure_whitening
        patch.setattr(vae, "measure_whitening", lambda network, world, clips: whitening(network, world, clips=4))
        patch.setattr(vae.VAETask, "validate", lambda task, n: {"heldout_psnr": 0.0})
        patch.setattr(teacher.TeacherTask, "validate", lambda task, n: {"heldout_loss": 0.0})
        patch.setattr(teacher.TeacherTask, "sample", lambda task, folder, n: None)
        yield


@pytest.fixture(scope="module")
def vae_run(place: Path) -> Path:
    assert avd("train", "vae", "--output", "vae", *UPDATES) == 0
    return place / "vae"


@pytest.fixture(scope="module")
def teacher_run(place: Path, vae_run: Path) -> Path:
    assert avd("train", "teacher", "--vae", "vae", "--clips", 4, "--output", "teacher", *UPDATES) == 0
    return place / "teacher"


@pytest.fixture(scope="module")
def interpolator_run(place: Path) -> Path:
    assert avd("train", "interpolator", "--model", "tiny", "--clips", 16, "--output", "interpolator", *UPDATES) == 0
    return place / "interpolator"


def test_a_run_logs_its_updates(vae_run: Path, teacher_run: Path, interpolator_run: Path) -> None:
    for run in (vae_run, teacher_run, interpolator_run):
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert [line["update"] for line in lines] == [0, 1]
        assert any(name.startswith("heldout") for name in lines[-1])


def test_a_finished_run_is_refused_and_a_resumed_one_resumes(
    vae_run: Path, interpolator_run: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    command = ("train", "interpolator", "--model", "tiny", "--clips", 16, "--output", interpolator_run)
    before = snapshot(interpolator_run)
    assert avd(*command, *UPDATES) == 2
    assert "--resume" in capfd.readouterr().err
    assert avd(*command, *UPDATES, "--resume", "--level", 1) == 2
    assert "began with level = 0, now it is 1" in capfd.readouterr().err
    assert avd(*command, *UPDATES, "--resume") == 0
    assert snapshot(interpolator_run) == before
    assert avd("train", "vae", "--output", vae_run, "--updates", 1, "--resume") == 2
    assert "has done 2 updates already" in capfd.readouterr().err


def test_a_recipe_and_changes_to_it_decide_a_run_and_are_recorded(place: Path) -> None:
    (place / "small-unet.yaml").write_text("extends: interpolator\nmodel: tiny\nwidths: [8, 16]\nclips: 16\nbatch: 8\n")
    command = ("train", "interpolator", "small-unet.yaml", "--set", "batch=2", "--set", "updates=5", "--updates", 1)
    assert avd(*command, "--seed", 3, "--output", "small-unet") == 0
    recorded = load(InterpolatorRecipe, "small-unet/recipe.yaml")
    assert recorded == InterpolatorRecipe(model="tiny", widths=(8, 16), clips=16, batch=2, updates=1, seed=3)
    assert FrameInterpolator.load(place / "small-unet" / "interpolator").config.widths == (8, 16)
    assert len((place / "small-unet" / "metrics.jsonl").read_text().splitlines()) == 1


def test_a_run_whose_recipe_notes_no_kind_resumes(place: Path, interpolator_run: Path, teacher_run: Path) -> None:
    commands = {
        interpolator_run: ("train", "interpolator", "--model", "tiny", "--clips", 16),
        teacher_run: ("train", "teacher", "--vae", "vae", "--clips", 4),
    }
    for run, command in commands.items():
        older = place / f"older-{run.name}"
        shutil.copytree(run, older)
        values = yaml.safe_load((older / "recipe.yaml").read_text())
        assert values.pop("kind") == run.name
        assert run != teacher_run or values["from"] is None
        (older / "recipe.yaml").write_text(yaml.safe_dump(values))
        assert avd(*command, "--output", older, *UPDATES, "--resume") == 0
        files = [file for file in snapshot(run) if file.endswith((".safetensors", ".jsonl", ".yaml"))]
        assert len(files) > 3 and all(snapshot(older)[file] == snapshot(run)[file] for file in files)


def test_a_teacher_resumes_with_the_latents_it_has(place: Path, teacher_run: Path) -> None:
    latents = snapshot(teacher_run / "latents")
    command = ("train", "teacher", "--vae", "vae", "--clips", 4, "--output", teacher_run, "--resume")
    assert avd(*command, "--updates", 3) == 0
    assert len((teacher_run / "metrics.jsonl").read_text().splitlines()) == 3
    assert snapshot(teacher_run / "latents") == latents


def test_a_student_is_distilled_with_the_interpolator_that_its_recipe_names(
    place: Path, interpolator_run: Path
) -> None:
    """The student gets it, and that of the model `tiny` stays where it is."""
    before = snapshot(place / "tiny")
    changes = ("rollout.half_rate_stages=2", f"interpolator={interpolator_run}", "training.batch=2")
    options = [word for change in changes for word in ("--set", change)]
    assert avd("distill", "small.yaml", *options, "--output", "half", "--updates", 1) == 0
    trained, student = snapshot(interpolator_run / "interpolator"), snapshot(place / "half" / "student")
    assert trained and all(student[f"interpolator/{name}"] == content for name, content in trained.items())
    assert snapshot(place / "tiny") == before
    assert avd("generate", "half/student", "--prompt", "one ball", "--half-rate", "--output", "half.mp4") == 0


def test_an_interpolator_learns_from_a_students_own_clips(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    command = ("train", "interpolator", "--clips", 16, "--updates", 1, "--set", "batch=2", "--student")
    settings = json.loads((place / "tiny" / "avd.json").read_text())
    shutil.copytree(place / "tiny", place / "finished" / "student")
    (place / "finished" / "student" / "avd.json").write_text(
        json.dumps({**settings, "student_timesteps": [1000, 500], "half_rate_stages": 1})
    )
    assert avd(*command, "finished", "--output", "own-clips") == 0
    assert FrameInterpolator.load(place / "own-clips" / "interpolator").config.channels == 12
    assert load(InterpolatorRecipe, "own-clips/recipe.yaml").student == "finished"
    capfd.readouterr()
    assert avd(*command, "tiny", "--output", "of-a-teacher") == 2
    assert "is a many-step model" in capfd.readouterr().err and not (place / "of-a-teacher").exists()


def test_two_processes_train_an_interpolator_as_one_does(place: Path) -> None:
    """Up to rounding; the first one writes, and a single process resumes what both began."""
    options = ["train", "interpolator", "--model", "tiny", "--clips", "48", "--updates", "4"]
    options += ["--set", "batch=6", "--set", "warmup=1", "--set", "noise=0.1"]
    assert avd(*options, "--output", "alone") == 0
    for code, errors in end_of(start_ranks(2, "avd", *options, "--output", "together")):
        assert code == 0, errors
    alone, together = (
        [json.loads(line) for line in (place / run / "metrics.jsonl").read_text().splitlines()]
        for run in ("alone", "together")
    )
    for found, expected in zip(together, alone, strict=True):
        assert found.pop("seconds") and expected.pop("seconds")
        assert found == pytest.approx(expected, rel=1e-4)
    weights, expected = (FrameInterpolator.load(place / run / "interpolator") for run in ("together", "alone"))
    torch.manual_seed(0)
    x = torch.randn(2, 12, 3, 2, 2)
    learnt = (expected(x) - FrameInterpolator(expected.config)(x)).norm()
    assert learnt > 0 and (weights(x) - expected(x)).norm() < 1e-2 * learnt
    assert avd(*options, "--output", "together", "--updates", 5, "--resume") == 0
    assert len((place / "together" / "metrics.jsonl").read_text().splitlines()) == 5


def test_processes_that_cannot_share_a_batch_are_refused(
    monkeypatch: pytest.MonkeyPatch, place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for key, value in {
        "WORLD_SIZE": "3",
        "RANK": "0",
        "LOCAL_RANK": "0",
        "MASTER_ADDR": "x",
        "MASTER_PORT": "1",
    }.items():
        monkeypatch.setenv(key, value)
    assert avd("train", "interpolator", "--model", "tiny", "--output", "three") == 2
    assert "batch is 64, over 3 processes: choose a multiple of 3" in capfd.readouterr().err
    assert not (place / "three").exists()


def test_the_parts_are_packed_into_a_model_in_half_precision(
    place: Path, teacher_run: Path, interpolator_run: Path
) -> None:
    parts = ("train", "pack", teacher_run / "teacher", "--interpolator", interpolator_run / "interpolator")
    assert avd(*parts, "--output", "packed") == 0
    model, original = load_model("packed"), load_model(str(teacher_run / "teacher"))
    assert model.settings == original.settings and model.latent_shape() == (12, 5, 6, 6)
    for name, weights in model.transformer.state_dict().items():
        torch.testing.assert_close(weights, original.transformer.state_dict()[name].half().float(), rtol=0, atol=0)
    assert FrameInterpolator.load(Path("packed/interpolator")).config.channels == 12
    assert avd("generate", "packed", "--steps", 1, "--prompt", "one ball", "--output", "ball.mp4") == 0
