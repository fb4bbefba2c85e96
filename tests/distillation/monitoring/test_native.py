"""A run that the native suite watches: against which references, the diversity of seeds, and what a change leaves."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from avd.distillation.monitoring import references
from avd.distillation.monitoring.clips import MonitorClips
from avd.distillation.monitoring.monitor import ratios_to, score
from avd.distillation.monitoring.suites import NativeMonitorSuite
from avd.distillation.sampler import RunSampler
from avd.engine.checkpoint import list_checkpoints, load_checkpoint
from avd.engine.ranks import SINGLE_PROCESS
from avd.measures.clip import measure_clip
from avd.world import World
from avd.world.damage import saturate, slow_down
from helpers.command import snapshot
from helpers.monitor_ranks import measure_and_count
from helpers.processes import end_of, start_ranks
from helpers.watched_run import monitor_of, watched, watched_recipe, watched_task

CLIPS, PROMPTS, SEEDS = 3, 2, 3
VIDEOS = CLIPS + PROMPTS * (SEEDS - 1)
NATIVE = (
    "monitors.suite=native", f"monitors.clips={CLIPS}", f"monitors.diversity_prompts={PROMPTS}",
    f"monitors.diversity_seeds={SEEDS}",
)  # fmt: skip

pytestmark = pytest.mark.usefixtures("one_thread")


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_videos_are_those_of_the_pixels_and_further_seeds_of_some_prompts() -> None:
    task = watched_task(watched_recipe())
    pixels, native = (
        MonitorClips(watched_recipe(*changes), task.data.clips, SINGLE_PROCESS)
        for changes in ((f"monitors.clips={CLIPS}",), NATIVE)
    )
    assert pixels.videos == native.videos[:CLIPS] and not pixels.groups
    assert [[native.videos[i] for i in group] for group in native.groups] == [
        [(index, seed) for seed in range(SEEDS)] for index in (native.indices[0], native.indices[1])
    ]
    places = range(VIDEOS)
    noise = native.noise(places)("start")
    assert torch.equal(noise[:CLIPS], pixels.noise(range(CLIPS))("start"))
    assert len({tuple(each.flatten().tolist()) for each in noise}) == VIDEOS
    prompts = native.prompts(native.groups[1])["embedding"]
    assert torch.equal(prompts, prompts[:1].expand_as(prompts))


def test_every_measure_stands_beside_both_references_and_diversity_beside_the_teacher_s(tmp_path: Path) -> None:
    task = watched(tmp_path / "run", 1, *NATIVE)
    line = lines(tmp_path / "run" / "metrics.jsonl")[0]
    found = json.loads((tmp_path / "run" / "references.json").read_text())
    assert found["suite"] == "native" and len(found["further_seeds"]) == VIDEOS - CLIPS
    videos = task.model.decode_video(task.data.clips.latents(found["clips"]))
    real = [measure_clip(video, task.model.settings.fps) for video in videos]
    assert found["real"]["sharpness"] == pytest.approx(np.mean([each.sharpness for each in real]), rel=1e-3)
    assert found["real"].keys() | {"diversity_appearance", "diversity_motion"} == found["teacher"].keys()
    assert line["sharpness_to_real"] == pytest.approx(line["sharpness"] / found["real"]["sharpness"])
    flicker, of_teacher = 1 - line["temporal_flickering"], 1 - found["teacher"]["temporal_flickering"]
    assert line["temporal_flickering_to_teacher"] == pytest.approx(flicker / of_teacher)
    ratio = line["diversity_appearance"] / found["teacher"]["diversity_appearance"]
    assert line["diversity_appearance_to_teacher"] == pytest.approx(ratio)
    assert not any(name.startswith("diversity") and name.endswith("_to_real") for name in line)
    scored = (
        "saturation_to_real", "contrast_to_real", "motion_to_teacher", "sharpness_to_real",
        "motion_smoothness_dis_to_teacher", "diversity_appearance_to_teacher",
    )  # fmt: skip
    assert line["score"] == pytest.approx(sum(abs(math.log(line[name])) for name in scored))


def shaken(video: np.ndarray) -> np.ndarray:
    steps = np.random.default_rng(0).integers(-2, 3, (len(video), 2))
    return np.stack([np.roll(frame, step, axis=(0, 1)) for frame, step in zip(video, steps, strict=True)])


COMPLAINTS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], str]] = {
    "fried": (lambda video: saturate(video, 2.0), "saturation_to_real"),
    "blurred": (lambda video: np.stack([cv2.GaussianBlur(frame, (0, 0), 2) for frame in video]), "sharpness_to_real"),
    "static": (lambda video: slow_down(video, 0.3), "motion_to_teacher"),
    "jittery": (shaken, "motion_smoothness_dis_to_teacher"),
}


@pytest.mark.parametrize("complaint", [*COMPLAINTS, "alike"])
def test_the_score_rises_with_every_complaint_and_its_own_part_of_it_most(complaint: str) -> None:
    """Rendered clips, two for each of four prompts, beside themselves: spoilt, they are at a distance."""
    suite, clips = NativeMonitorSuite(8.0), [World(1).clip(i, "heldout").video for i in range(8)]
    groups = [[i, i + 4] for i in range(4)]
    if complaint == "alike":
        spoilt, own = clips[:4] * 2, "diversity_appearance_to_teacher"
    else:
        damage, own = COMPLAINTS[complaint]
        spoilt = [damage(video) for video in clips]
    teacher, student = (suite.summarise([suite.measure(video) for video in made], groups) for made in (clips, spoilt))
    beside = references.References(teacher, teacher)
    assert score(ratios_to(beside, teacher, suite), suite.scored)["score"] == 0.0
    ratios = ratios_to(beside, student, suite)
    parts = {name: abs(math.log(max(ratios[name], 1e-9))) for name in suite.scored}
    assert max(parts, key=parts.__getitem__) == own and parts[own] > 0.2
    assert score(ratios, suite.scored)["score"] >= parts[own]


def test_a_student_that_is_the_teacher_is_at_no_distance_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RunSampler, "student", as_teacher)
    monitor = monitor_of(watched_task(watched_recipe(*NATIVE)))
    assert monitor is not None
    monitor.find_references(tmp_path, lambda text: None)
    metrics = monitor.measure().metrics
    ratios = {name: value for name, value in metrics.items() if name.endswith("_to_teacher")}
    assert len(ratios) >= 12 and {"diversity_motion_to_teacher", "motion_to_teacher"} <= ratios.keys()
    assert all(value == pytest.approx(1.0, rel=1e-6) or math.isnan(value) for value in ratios.values())


def test_a_student_that_gives_every_seed_the_same_video_is_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing but diversity tells it from the student that it is a copy of."""
    student = RunSampler.student

    def deaf_to_noise(self: RunSampler, noise: torch.Tensor, prompts: Any, renoise: Any, heed: Any) -> torch.Tensor:
        fixed = torch.randn(noise[:1].shape, generator=torch.Generator().manual_seed(0)).expand_as(noise)
        return student(self, fixed, prompts, lambda stage: fixed, heed)

    messages: list[str] = []
    quiet = ("monitors.limits.motion=null", "monitors.limits.saturation=null", "monitors.limits.contrast=null")
    watched(tmp_path / "good", 1, *NATIVE, *quiet, messages=messages)
    assert not any("warning" in text for text in messages)
    monkeypatch.setattr(RunSampler, "student", deaf_to_noise)
    watched(tmp_path / "alike", 1, *NATIVE, *quiet, messages=messages)
    warning = "videos of one prompt differ by 0 % of what the teacher's do: every seed gives much the same"
    assert messages[-1] == f"update 1: warning: {warning}"
    assert lines(tmp_path / "alike" / "warnings.jsonl")[0]["about"] == "diversity_appearance_to_teacher"
    watched(tmp_path / "allowed", 1, *NATIVE, *quiet, "monitors.limits.diversity=null", messages=messages)
    watched(tmp_path / "pixels", 1, *quiet, messages=messages)
    assert sum("warning" in text for text in messages) == 1
    watched(tmp_path / "alike", 2, *quiet, resume=True)  # by pixels, which know of no such warning
    assert [line["warnings"] for line in lines(tmp_path / "alike" / "metrics.jsonl")] == [1, 0]


def test_watching_changes_no_student(tmp_path: Path) -> None:
    watched(tmp_path / "native", 2, *NATIVE, "monitors.keep_best=score")
    watched(tmp_path / "alone", 2, "monitors.every=0")
    assert snapshot(tmp_path / "native" / "student") == snapshot(tmp_path / "alone" / "student")
    best = json.loads((tmp_path / "native" / "best" / "best.json").read_text())
    assert best["by"] == "score" and best["diversity_motion_to_teacher"] > 0


def test_the_suite_may_change_on_resume_and_no_number_of_the_other_is_taken_for_its_own(tmp_path: Path) -> None:
    """The references are measured again, and the best score so far is not compared with another suite's."""
    run, keep = tmp_path / "run", "monitors.keep_best=score"

    def best() -> dict[str, Any]:
        _, state = load_checkpoint(list_checkpoints(run / "checkpoints")[-1])
        return state["monitors"]["best"]

    watched(run, 2, f"monitors.clips={CLIPS}", keep)
    pixels = (run / "references.json").read_bytes()
    assert best()["by"] == "score" and "suite" not in json.loads(pixels)
    watched(run, 4, *NATIVE, keep, resume=True)
    assert best()["by"] == "native score"
    metrics, native = lines(run / "metrics.jsonl"), (run / "references.json").read_bytes()
    assert best()["value"] == pytest.approx(min(line["score"] for line in metrics[2:]))
    watched(run, 6, f"monitors.clips={CLIPS}", keep, resume=True)
    assert (run / "references.json").read_bytes() == pixels
    watched(run, 8, *NATIVE, "monitors.diversity_seeds=2", resume=True)
    other = json.loads((run / "references.json").read_text())
    assert len(other["further_seeds"]) == PROMPTS and other["real"] == json.loads(native)["real"]


class Killed(BaseException):
    """Nothing catches it, like a kill -9."""


def test_references_survive_a_kill_and_another_suite_s_lines_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = ("monitors.teacher_steps=2", "compute.microbatch=1")
    recipe = watched_recipe(*NATIVE, *small)
    for name in ("straight", "killed"):
        (tmp_path / name).mkdir()
    measure_and_count(tmp_path / "straight", recipe, SINGLE_PROCESS)
    append, left = references.append_json_line, [VIDEOS]

    def killed(path: Path, line: Any, **options: Any) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise Killed
        append(path, line, **options)

    with monkeypatch.context() as patch:
        patch.setattr(references, "append_json_line", killed)
        with pytest.raises(Killed):
            measure_and_count(tmp_path / "killed", recipe, SINGLE_PROCESS)
    noted = tmp_path / "killed" / "references.jsonl"
    of_pixels = {"reference": "teacher", "clip": 0, "teacher_steps": 2, "saturation": 9, "contrast": 9, "motion": 9}
    noted.write_text(noted.read_text() + json.dumps(of_pixels) + "\n")
    assert len(measure_and_count(tmp_path / "killed", recipe, SINGLE_PROCESS)["teacher"]) == 2
    ends = [(tmp_path / name / "references.json").read_bytes() for name in ("straight", "killed")]
    assert ends[0] == ends[1]


def test_ranks_share_the_videos_and_find_the_same(tmp_path: Path) -> None:
    recipe = (*NATIVE, "monitors.teacher_steps=2", "training.batch=4", "compute.microbatch=2")
    (tmp_path / "alone").mkdir()
    alone = measure_and_count(tmp_path / "alone", watched_recipe(*recipe), SINGLE_PROCESS)
    for code, errors in end_of(start_ranks(2, "helpers.monitor_ranks", str(tmp_path), *recipe)):
        assert code == 0, errors
    ranks = [json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in range(2)]
    assert alone["decoded"] == sum(rank["decoded"] for rank in ranks) == 2 * VIDEOS + CLIPS
    for rank in ranks:
        assert rank["metrics"] == pytest.approx(alone["metrics"], rel=1e-3, nan_ok=True)


def as_teacher(self: RunSampler, noise: torch.Tensor, prompts: Any, renoise: Any, heed: Any) -> torch.Tensor:
    return self.teacher(noise, prompts, self.default_teacher_steps, heed)
