"""A watched run: what it measures, that watching changes nothing, and that it can be killed anywhere."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from avd.data import MemoryLatents
from avd.distillation import sampler
from avd.distillation.data import RunData
from avd.distillation.monitoring import watch
from avd.distillation.monitoring.monitor import Monitor, MonitorResult, score
from avd.distillation.sampler import RunSampler
from avd.distillation.task import DistillTask
from avd.engine import saving
from avd.engine.checkpoint import list_checkpoints, load_checkpoint
from avd.measures.video import measure_pixels
from avd.models.family import load_model
from avd.types import Stopped
from helpers.command import snapshot
from helpers.watched_run import COLLAPSING, monitor_of, watched, watched_recipe, watched_task

UPDATES = 6
ROLLING_BACK = (
    *COLLAPSING, "monitors.patience=4", "monitors.action=roll_back", "monitors.keep_best=motion",
    "monitors.roll_backs=2", "student.optimizer.learning_rate=0.01", "seed=2",
)  # fmt: skip
"""The motion of this run leaves the teacher's from the first updates on, so that the best lies behind."""


class Killed(BaseException):
    """Nothing catches it, like a kill -9."""


pytestmark = pytest.mark.usefixtures("one_thread")


def lines(path: Path) -> list[dict[str, Any]]:
    read = [json.loads(line) for line in path.read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in read]


def outcome(path: Path) -> dict[str, Any]:
    """All that a run leaves, but for how long it took and the name of its folder."""
    left = {name: digest for name, digest in snapshot(path).items() if name not in ("metrics.jsonl", "warnings.jsonl")}
    return left | {name: lines(path / name) for name in ("metrics.jsonl", "warnings.jsonl") if (path / name).exists()}


# -- what is measured ---------------------------------------------------------------------------------------------


def test_metrics_are_those_of_the_averaged_students_videos_and_of_the_references(tmp_path: Path) -> None:
    task = watched(tmp_path / "run", 1)
    line = lines(tmp_path / "run" / "metrics.jsonl")[0]
    references = json.loads((tmp_path / "run" / "references.json").read_text())
    real = [measure_pixels(video) for video in task.model.decode_video(task.data.clips.latents(references["clips"]))]
    assert references["real"]["saturation"] == pytest.approx(np.mean([stats.saturation for stats in real]))
    assert references["real"]["motion"] == pytest.approx(np.mean([stats.motion for stats in real]), rel=1e-3)
    for name in ("saturation", "contrast", "motion"):
        for reference in ("real", "teacher"):
            assert line[f"{name}_to_{reference}"] == pytest.approx(line[name] / references[reference][name])
    logs = [abs(math.log(line[key])) for key in ("saturation_to_real", "contrast_to_real", "motion_to_teacher")]
    assert line["score"] == pytest.approx(sum(logs))
    assert line["weight_mean_1000"] <= 1 and line["fake_score_level"] == line["fake_score"]


def test_the_measured_videos_differ_from_one_another_and_stay_the_same(tmp_path: Path, monkeypatch: Any) -> None:
    task, made = watched_task(watched_recipe("compute.microbatch=1")), []
    decode = task.model.decode_video
    monkeypatch.setattr(task.model, "decode_video", lambda latents: made.append(latents) or decode(latents))
    monitor = monitor_of(task)
    assert monitor is not None
    first, second = monitor.measure().metrics, monitor.measure().metrics
    assert first["saturation"] == second["saturation"]
    assert len(made) == 4 and torch.equal(made[0], made[2]) and torch.equal(made[1], made[3])
    assert not torch.equal(made[0], made[1])


def test_the_teacher_is_sampled_once_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    original = sampler.sample_teacher

    def counted(*arguments: Any, steps: int, **options: Any) -> torch.Tensor:
        calls.append(steps)
        return original(*arguments, steps=steps, **options)

    monkeypatch.setattr(sampler, "sample_teacher", counted)
    path = tmp_path / "run"
    watched(path, 2)
    before = (path / "references.json").read_bytes()
    watched(path, 3, resume=True)
    assert calls == [4] and (path / "references.json").read_bytes() == before
    (path / "references.json").write_text("{damaged")
    watched(path, 4, resume=True)
    assert calls == [4, 4] and (path / "references.json").read_bytes() == before
    watched(path, 5, "monitors.teacher_steps=2", resume=True)
    assert calls == [4, 4, 2]


def test_there_are_no_more_clips_than_data() -> None:
    task = watched_task(watched_recipe("monitors.clips=100"))
    monitor = monitor_of(task)
    assert monitor is not None
    assert monitor.measure().metrics["saturation"] > 0
    assert len(task.data.clips) == 6


def test_grey_data_have_no_ratio_and_warn_of_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task, messages = watched_task(watched_recipe(*COLLAPSING)), []
    monkeypatch.setattr(
        task.model, "decode_video", lambda latents: np.full((len(latents), 17, 16, 16, 3), 90, np.uint8)
    )
    watched(tmp_path / "run", 2, *COLLAPSING, task=task, messages=messages)
    line = lines(tmp_path / "run" / "metrics.jsonl")[1]
    assert line["saturation_to_real"] is line["motion_to_teacher"] is line["score"] is None
    assert line["warnings"] == 0 and not any("warning" in text for text in messages)


RIGHT = {"saturation_to_real": 1.0, "contrast_to_real": 1.0, "motion_to_teacher": 1.0}


def test_score() -> None:
    def scored(**changes: float) -> dict[str, float]:
        return score(RIGHT | changes, tuple(RIGHT))

    assert scored() == {"saturation": 0.0, "motion": 0.0, "score": 0.0}
    assert scored(saturation_to_real=2.0) == pytest.approx(scored(saturation_to_real=0.5))
    assert scored(motion_to_teacher=0.0)["score"] == math.inf
    assert math.isnan(scored(contrast_to_real=math.nan)["score"])


# -- watching changes nothing -------------------------------------------------------------------------------------


def test_a_watched_run_gives_the_same_bytes(tmp_path: Path) -> None:
    watched(tmp_path / "watched", 3, "monitors.keep_best=score")
    watched(tmp_path / "alone", 3, "monitors.every=0")
    assert snapshot(tmp_path / "watched" / "student") == snapshot(tmp_path / "alone" / "student")
    checkpoints = [list_checkpoints(tmp_path / name / "checkpoints")[-1] for name in ("watched", "alone")]
    assert len({(path / "tensors-00000-of-00001.safetensors").read_bytes() for path in checkpoints}) == 1
    for seen, alone in zip(*(lines(tmp_path / name / "metrics.jsonl") for name in ("watched", "alone")), strict=True):
        assert {key: seen[key] for key in alone} == alone and "saturation" in seen.keys() - alone.keys()
    assert not (tmp_path / "alone" / "references.json").exists()


def test_asked_to_end_while_it_measures_a_run_saves_its_update_and_measures_it_when_it_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the next call of the network; what is left in the end is what an undisturbed run leaves."""
    options, student, calls = ("monitors.keep_best=score", "compute.microbatch=1"), RunSampler.student, []

    def asked(self: RunSampler, noise: Any, prompts: Any, renoise: Any, heed: Any) -> Any:
        def count_and_heed() -> None:
            heed()
            calls.append(1)
            if len(calls) == 8 + 2:  # of 4 stages for each of 2 clips, so in the second measurement
                signal.raise_signal(signal.SIGTERM)

        return student(self, noise, prompts, renoise, count_and_heed)

    watched(tmp_path / "straight", 4, *options)
    with monkeypatch.context() as patch:
        patch.setattr(RunSampler, "student", asked)
        with pytest.raises(Stopped, match="stopped by SIGTERM while the update was measured") as stopped:
            watched(tmp_path / "asked", 4, *options)
    assert stopped.value.code == 128 + signal.SIGTERM and len(calls) == 8 + 2
    assert [line["update"] for line in lines(tmp_path / "asked" / "metrics.jsonl")] == [0]
    assert list_checkpoints(tmp_path / "asked" / "checkpoints")[-1].name == "step-0000002"
    updates, update = [], DistillTask.update
    monkeypatch.setattr(DistillTask, "update", lambda task, n, *rest: updates.append(n) or update(task, n, *rest))
    watched(tmp_path / "asked", 4, *options, resume=True)
    assert updates == [2, 3] and outcome(tmp_path / "asked") == outcome(tmp_path / "straight")


def test_monitors_may_change_on_resume(tmp_path: Path) -> None:
    watched(tmp_path / "run", 2, "monitors.every=0")
    watched(tmp_path / "run", 4, "monitors.every=2", resume=True)
    watched(tmp_path / "run", 6, "monitors.every=0", resume=True)
    assert [line["update"] for line in lines(tmp_path / "run" / "metrics.jsonl") if "score" in line] == [3]


# -- what is done about it ----------------------------------------------------------------------------------------


def test_a_warning_is_shown_once_and_kept(tmp_path: Path) -> None:
    messages: list[str] = []
    watched(tmp_path / "run", 4, "monitors.limits.motion=1000", messages=messages)
    warnings = lines(tmp_path / "run" / "warnings.jsonl")
    assert len(messages) == 2 and messages[1] == f"update 1: warning: {warnings[0]['text']}"
    assert [(line["updates"], line["event"], line["about"]) for line in warnings] == [
        (1, "crossed", "motion_to_teacher")
    ]
    assert warnings[0]["text"].endswith("% of the teacher's: temporal collapse")
    assert [line["warnings"] for line in lines(tmp_path / "run" / "metrics.jsonl")] == [1, 1, 1, 1]


def test_a_stopped_run_has_saved_its_state_and_resumes_when_asked(tmp_path: Path) -> None:
    path, stop = tmp_path / "run", (*COLLAPSING, "monitors.action=stop", "monitors.patience=3")
    with pytest.raises(Stopped, match=r"after 3 updates: motion at .* temporal collapse, for 3 measurements in a row"):
        watched(path, 6, *stop)
    assert not (path / "student").exists()
    assert [point.name for point in list_checkpoints(path / "checkpoints")] == ["step-0000002", "step-0000003"]
    with pytest.raises(Stopped, match=r"after 4 updates: .* for 4 measurements"):
        watched(path, 6, *stop, resume=True)
    watched(path, 6, *COLLAPSING, resume=True)
    watched(tmp_path / "never stopped", 6, *COLLAPSING)
    assert snapshot(path / "student") == snapshot(tmp_path / "never stopped" / "student")


def test_the_best_student_is_the_one_that_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task, averages = watched_task(watched_recipe("monitors.keep_best=saturation")), []
    metrics = iter([{"saturation_to_real": ratio} for ratio in (1.5, 0.9, 1.3)])
    original = Monitor.measure

    def measure(self: Monitor, *heed: Any) -> MonitorResult:
        averages.append({k: v.clone() for k, v in task.roles.average.network.transformer.state_dict().items()})
        return original(self, *heed)

    monkeypatch.setattr(Monitor, "measure", measure)
    monkeypatch.setattr(
        "avd.distillation.monitoring.monitor.score", lambda _, scored: score(RIGHT | next(metrics), scored)
    )
    watched(tmp_path / "run", 3, "monitors.keep_best=saturation", task=task)
    best = json.loads((tmp_path / "run" / "best" / "best.json").read_text())
    assert (best["updates"], best["by"]) == (2, "saturation")
    student = load_model(str(tmp_path / "run" / "best" / "student")).transformer.state_dict()
    assert all(torch.equal(value, averages[1][key]) for key, value in student.items())
    assert not (tmp_path / "run" / "best-checkpoint").exists()


def test_a_roll_back_resumes_from_the_best_with_other_noise(tmp_path: Path) -> None:
    messages: list[str] = []
    with pytest.raises(Stopped, match="temporal collapse"):
        watched(tmp_path / "back", UPDATES, *ROLLING_BACK, messages=messages)
    with pytest.raises(Stopped):
        watched(tmp_path / "stopped", UPDATES, *ROLLING_BACK, "monitors.action=stop", "monitors.patience=5")
    pattern = re.compile(r"update (\d): rolled back to update (\d), with other noise \(number (\d)\)")
    (first, best, one), (second, best_then, two) = (
        map(int, found.groups()) for text in messages if (found := pattern.match(text))
    )
    patience = 4
    assert (one, two) == (1, 2) and first == patience
    assert best < first and second == best + patience and best_then < second
    warnings = [(line["roll_backs"], line["event"]) for line in lines(tmp_path / "back" / "warnings.jsonl")]
    assert warnings == [(n, event) for n in range(3) for event in ("crossed", "rolled back" if n < 2 else "stopped")]
    assert [line["update"] for line in lines(tmp_path / "back" / "metrics.jsonl")] == list(range(best_then + patience))
    tensors, state = load_checkpoint(list_checkpoints(tmp_path / "back" / "checkpoints")[-1])
    other, _ = load_checkpoint(list_checkpoints(tmp_path / "stopped" / "checkpoints")[-1])
    assert state["roll_backs"] == 2
    assert any(not torch.equal(tensors[key], other[key]) for key in tensors if key.startswith("student."))


@pytest.fixture(scope="module")
def rolled_back(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a run leaves that is rolled back twice and then stopped, and never killed."""
    path = tmp_path_factory.mktemp("straight") / "run"
    with pytest.raises(Stopped):
        watched(path, UPDATES, *ROLLING_BACK)
    return outcome(path)


PLACES: dict[str, tuple[Any, str, int]] = {
    "update": (DistillTask, "update", 3),
    "checkpoint": (saving, "publish", 3),
    "checkpoint of a roll-back": (watch, "restore_checkpoint", 1),
    "removal of later checkpoints": (watch, "remove_folder", 1),
    "removal of any folder": (shutil, "rmtree", 1),
    "rename of any file or folder": (os, "replace", 9),
}
"""The last number is how much further each process comes than the one before it."""


@pytest.mark.parametrize("place", PLACES)
def test_killed_around_a_roll_back_and_resumed_it_is_the_same_run(
    place: str, rolled_back: dict[str, Any], tmp_path: Path
) -> None:
    owner, name, stride = PLACES[place]
    path, original = tmp_path / "run", getattr(owner, name)
    for kills in range(60):
        try:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(owner, name, killing(original, [1 + kills * stride]))
                watched(path, UPDATES, *ROLLING_BACK, resume=path.exists())
        except Killed:
            continue
        except Stopped:
            break
    assert kills > 1
    assert outcome(path) == rolled_back


def killing(original: Callable[..., Any], left: list[int]) -> Callable[..., Any]:
    def counted(*arguments: Any, **options: Any) -> Any:
        left[0] -= 1
        if left[0] == 0:
            raise Killed
        return original(*arguments, **options)

    return counted


def test_without_a_best_there_is_nothing_to_roll_back_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run"
    watched(path, 1, *COLLAPSING)
    monkeypatch.setattr(
        "avd.distillation.monitoring.monitor.score", lambda *_: dict.fromkeys(("saturation", "score"), math.nan)
    )
    with pytest.raises(Stopped, match="no best checkpoint to roll back to"):
        watched(path, 4, *COLLAPSING, "monitors.action=roll_back", "monitors.keep_best=saturation", resume=True)


def test_memory_latents_of_one_clip_are_enough() -> None:
    task = watched_task(watched_recipe())
    source = MemoryLatents(
        task.data.clips.latents([0]), task.data.clips.prompts([0]), list(task.data.clips.captions[:1])
    )
    monitor = monitor_of(DistillTask(watched_recipe(), task.model, RunData.encode(task.model, source), None))
    assert monitor is not None and math.isfinite(monitor.measure().metrics["motion"])
