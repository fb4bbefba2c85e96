"""Runs that go wrong are caught while they run: on the shipped miniature, by recipes that really spoil it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from avd.distillation.step import Batch, TrainingStep
from helpers.command import avd

QUICK = (
    "training.batch=4", "training.sample_every=0", "training.checkpoint_every=0", "data.world_clips=32",
    "monitors.every=4", "monitors.clips=8", "monitors.teacher_steps=12",
)  # fmt: skip
OVERSATURATING = (
    "objective.distribution_matching.guidance=20", "fake_score.updates=1", "student.optimizer.learning_rate=1e-3",
)  # fmt: skip
"""Distribution matching alone, guided far too hard, by a fake score that cannot follow."""


def distil(recipe: str, run: Path, updates: int, *changes: str) -> int:
    options = [word for change in (*QUICK, *changes) for word in ("--set", change)]
    return avd("distill", recipe, "--output", run, "--updates", updates, *options)


def warnings(run: Path) -> list[dict[str, Any]]:
    path = run / "warnings.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def measurements(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "score" in line]


def test_oversaturation_is_caught_and_stops_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, stop = tmp_path / "run", ("monitors.action=stop", "monitors.patience=1", "monitors.limits.fake_score=null")
    assert distil("dmd", run, 60, *OVERSATURATING, *stop, "monitors.keep_best=score") == 3
    screen = capsys.readouterr().err
    done = measurements(run)[-1]["update"] + 1
    assert done < 30
    assert f"update {done}: warning: " in screen and "above real data: oversaturation" in screen
    assert f"avd: stopped after {done} updates: " in screen and "--resume --set monitors.action=warn" in screen
    assert any(w["about"] == "saturation_to_real" for w in warnings(run))
    saturation = [line["saturation_to_real"] for line in measurements(run)]
    assert saturation[-1] > 1.25 > saturation[0]
    assert [path.name for path in (run / "checkpoints").iterdir()] == [f"step-{done:07d}"]
    assert json.loads((run / "best" / "best.json").read_text())["updates"] < done
    assert not (run / "best" / "student").exists() and not (run / "student").exists()
    best = tmp_path / "best"
    assert avd("export", run, "--checkpoint", "best", "--format", "diffusers", "--output", best) == 0
    assert (best / "model_index.json").exists()


def test_temporal_collapse_is_caught(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real videos that stand still: the regression teaches the student to stand still too."""
    judge = TrainingStep._judge_data

    def on_frozen_videos(self: TrainingStep, source: Any, batch: Batch, *others: Any) -> None:
        frozen = batch.latents_BCFHW[:, :, 1:2].expand_as(batch.latents_BCFHW)
        judge(self, source, replace(batch, latents_BCFHW=frozen), *others)

    monkeypatch.setattr(TrainingStep, "_judge_data", on_frozen_videos)
    changes = ("objective.distribution_matching.weight=0", "objective.temporal.weight=0")
    fast = ("student.optimizer.learning_rate=1e-3", "student.optimizer.warmup=0", "student.ema=0.5")
    assert distil("avd", tmp_path / "run", 24, *changes, *fast) == 0
    assert "of the teacher's: temporal collapse" in capsys.readouterr().err
    assert warnings(tmp_path / "run")[-1]["about"] == "motion_to_teacher"
    motion = [line["motion_to_teacher"] for line in measurements(tmp_path / "run")]
    assert motion[-1] < 0.6


def test_seeds_that_are_all_alike_are_caught(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All that a regression at pure noise can learn is the mean of all clips, whatever the noise."""
    alone = ("rollout.timesteps=[1000]", "monitors.every=8", "monitors.suite=native", "monitors.limits.motion=null")
    fast = ("student.optimizer.learning_rate=1e-3", "student.optimizer.warmup=0", "student.ema=0.5")
    assert distil("plain-regression", tmp_path / "run", 8, *alone, *fast) == 0
    assert "of what the teacher's do: every seed gives much the same" in capsys.readouterr().err
    (line,) = measurements(tmp_path / "run")
    assert line["diversity_appearance_to_teacher"] < 0.3


def test_a_healthy_run_does_not_warn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert distil("avd", tmp_path / "run", 12, "fake_score.updates=3", "monitors.suite=native") == 0
    assert "warning" not in capsys.readouterr().err and warnings(tmp_path / "run") == []
    assert [line["update"] + 1 for line in measurements(tmp_path / "run")] == [4, 8, 12]


def test_roll_back_needs_to_know_the_best(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert distil("dmd", tmp_path / "run", 4, "monitors.action=roll_back") == 2
    assert "action roll_back needs keep_best" in capsys.readouterr().err
    assert distil("dmd", tmp_path / "run", 4, "monitors.action=stop", "monitors.every=0") == 2
    assert "set every to at least 1" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
