"""Distillation runs: the same bytes however often they are interrupted, and a student that others can load."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import WanPipeline

from avd.data import read_video
from avd.distillation import task as task_module
from avd.distillation.task import DistillTask, falls_in_share
from avd.engine.loop import UpdateResult
from avd.engine.saving import Saver
from avd.models.family import load_model
from avd.models.interpolator import FrameInterpolator
from avd.objectives.temporal import temporal_regularization
from avd.objectives.term import Sample
from avd.types import UserError
from helpers.distill_run import distill, small_recipe, small_task
from helpers.tiny import LATENT_SHAPE, tiny_model, tiny_source

UPDATES = 4


class Killed(Exception):
    """Stands for a process that ends."""


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, DistillTask]:
    """A run never interrupted, and its task."""
    path = tmp_path_factory.mktemp("runs") / "straight"
    return path, distill(path, UPDATES)


def student_bytes(path: Path) -> dict[str, bytes]:
    folder = path / "student"
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def metrics(path: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


def assert_same_run(path: Path, other: Path) -> None:
    assert student_bytes(path) == student_bytes(other)
    assert metrics(path) == metrics(other)


def raise_on_call(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, call: int) -> None:
    """Have the `call`-th call (from 1) of `owner.name` raise instead."""
    original: Callable[..., Any] = getattr(owner, name)
    calls = 0

    def counted(*args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            raise Killed
        return original(*args, **options)

    monkeypatch.setattr(owner, name, counted)


# -- interruption -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("place", "call"),
    [
        ("first update", 1),
        ("middle of a cycle", 8),  # the second cycle's third fake-score update: before any checkpoint
        ("middle of a cycle", 18),  # the fourth cycle's third: after a checkpoint
        ("sample", 1),
        ("checkpoint", 1),
        ("checkpoint", 2),
        ("export", 1),
    ],
)
def test_a_killed_and_resumed_run_gives_the_same_bytes(
    place: str, call: int, straight: tuple[Path, DistillTask], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, task = tmp_path / "killed", small_task(small_recipe())
    owner, name = {
        "first update": (task, "update"),
        "middle of a cycle": (task.step, "_update_auxiliary"),
        "sample": (task.model, "decode_video"),
        "checkpoint": (Saver, "save"),
        "export": (task.model, "save"),
    }[place]
    with monkeypatch.context() as patch:
        raise_on_call(patch, owner, name, call)
        with pytest.raises(Killed):
            distill(path, UPDATES, task=task)
    assert not (path / "student").exists()
    distill(path, UPDATES, resume=True)
    assert_same_run(path, straight[0])


def test_killed_with_signal_9_at_random_moments(tmp_path: Path) -> None:
    killed, straight = tmp_path / "killed", tmp_path / "straight"
    subprocess.run([sys.executable, "-m", "helpers.distill_run", str(killed), "3"], check=True, timeout=300)
    updates = len((killed / "metrics.jsonl").read_text().splitlines()) + 1
    distill(killed, updates, resume=True)
    distill(straight, updates)
    assert_same_run(killed, straight)


def test_a_finished_run_resumes_to_more_updates(straight: tuple[Path, DistillTask], tmp_path: Path) -> None:
    path = tmp_path / "short"
    distill(path, UPDATES - 1)
    assert student_bytes(path) != student_bytes(straight[0])
    distill(path, UPDATES, resume=True)
    assert_same_run(path, straight[0])


def test_a_finished_run_is_left_alone(straight: tuple[Path, DistillTask]) -> None:
    path = straight[0]
    before = student_bytes(path), metrics(path)
    with pytest.raises(UserError, match="--resume"):
        distill(path, UPDATES)
    distill(path, UPDATES, resume=True)  # nothing is left to do
    assert (student_bytes(path), metrics(path)) == before


def test_seed_and_update_decide_the_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    def noise(seed: int, update: int) -> float:
        task = small_task(small_recipe(f"seed={seed}"))
        monkeypatch.setattr(
            task.step,
            "run",
            lambda batch, random, *how: UpdateResult({"noise": random.uniform("noise").sum().item()}),
        )
        return task.update(update).metrics["noise"]

    assert noise(0, 0) == noise(0, 0)
    assert len({noise(0, 0), noise(1, 0), noise(0, 1), noise(1, 1)}) == 4


def test_neighbouring_seeds_share_no_order() -> None:
    """Videos and prompts of seeds s and s + 1 are four different orders."""
    tasks = [small_task(small_recipe(f"seed={seed}")) for seed in (0, 1)]
    orders = [order for task in tasks for order in task.reader._orders.values()]
    assert len({tuple(i for _ in range(12) for i in order.next()) for order in orders}) == 4


# -- what a run leaves --------------------------------------------------------------------------------------------


def test_a_line_of_metrics_an_update(straight: tuple[Path, DistillTask]) -> None:
    lines = metrics(straight[0])
    assert [line["update"] for line in lines] == list(range(UPDATES))
    names = {
        "exit_stage", "distribution_matching", "temporal", "regression", "regression_weight", "fake_score",
        "student_grad_norm", "fake_score_grad_norm", "skipped_student", "skipped_fake_score",
    }  # fmt: skip
    assert all(names <= line.keys() and all(map(math.isfinite, line.values())) for line in lines)


def test_the_samples_are_videos(straight: tuple[Path, DistillTask]) -> None:
    files = sorted(file.name for file in (straight[0] / "samples").iterdir())
    assert files == ["update-000003.mp4", "update-000004.mp4"]
    video = read_video(straight[0] / "samples" / files[0])
    assert video.frames.shape == (17, 16, 4 * 16, 3) and video.fps == 8


@pytest.mark.parametrize("changes", [("compute.microbatch=1",), ("training.batch=1",)])
def test_samples_take_as_many_clips_at_once_as_training(
    changes: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    videos, sizes, decoded = {}, [], []
    for name, overrides in {"together": ("training.batch=4",), "parts": changes}.items():
        monkeypatch.setattr(
            task_module, "write_preview", lambda path, shown, fps, name=name: videos.update({name: shown})
        )
        task = small_task(small_recipe(*overrides))
        network, decode = task.roles.average.network, task.model.decode_video
        network.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
        monkeypatch.setattr(task.model, "decode_video", lambda x, decode=decode: decoded.append(len(x)) or decode(x))
        task.sample(tmp_path, 1)
    assert sizes == [4] * 4 + [1] * 16 and decoded == [1] * 8
    assert np.abs(videos["together"].astype(int) - videos["parts"]).max() <= 1
    assert (videos["together"][0] != videos["together"][1]).any()


def test_the_student_is_the_averaged_one_and_says_how_to_sample_it(straight: tuple[Path, DistillTask]) -> None:
    path, task = straight
    loaded = load_model(str(path / "student"))
    assert loaded.settings.student_timesteps == (1000, 900, 757, 522)
    assert loaded.settings.half_rate_stages == 2
    assert loaded.identity == task.model.identity
    average = task.roles.average.network.transformer.state_dict()
    student, found = task.roles.student.network.transformer.state_dict(), loaded.transformer.state_dict()
    assert found.keys() == average.keys() and all(torch.equal(found[k], average[k]) for k in found)
    assert any(not torch.equal(found[k], student[k]) for k in found)
    interpolator = FrameInterpolator.load(path / "student" / "interpolator")
    assert all(torch.equal(v, task.interpolator.state_dict()[k]) for k, v in interpolator.state_dict().items())


def test_stock_diffusers_runs_the_student(straight: tuple[Path, DistillTask]) -> None:
    pipeline = WanPipeline.from_pretrained(straight[0] / "student", dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    arguments = {"num_inference_steps": 2, "guidance_scale": 1.0, "max_sequence_length": 32, "output_type": "np"}
    frames = pipeline("a red square", height=16, width=16, num_frames=17, **arguments).frames
    assert frames.shape == (1, 17, 16, 16, 3)


# -- set-up -------------------------------------------------------------------------------------------------------


def test_the_truncation_may_be_the_datas_own() -> None:
    source, still = tiny_source(tiny_model()), torch.ones(2, *LATENT_SHAPE)  # of the highest loss there is

    def least(value: str) -> float:
        """The loss of samples that move a lot: the threshold, or their own where there is none."""
        task = small_task(small_recipe(f"objective.temporal.truncation={value}"))
        lively = still * torch.linspace(0, 1e3, LATENT_SHAPE[1]).view(-1, 1, 1)
        return task.step.terms["temporal"](Sample(lively, None, None)).per_sample_B[0].item()  # type: ignore[arg-type]

    assert least("data") == temporal_regularization(source.latents(range(len(source)))).per_sample_B[0].item()
    assert least("0.6") == pytest.approx(0.6)
    assert least("never") < -10


def test_fresh_rollouts_read_fresh_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    for shared, count in ((True, 1), (False, 5)):
        task = small_task(small_recipe(f"rollout.shared={str(shared).lower()}"))
        seen: list[Any] = []
        monkeypatch.setattr(task.step, "run", lambda batch, *how, seen=seen: seen.append(batch))
        task.update(0)
        (batch,) = seen
        assert len(batch.rollout_prompts) == count
        assert all(
            prompt.shapes == batch.prompts.shapes and len(prompt) == len(batch.prompts)
            for prompt in batch.rollout_prompts
        )
        assert task.reader.state_dict()["prompt_order"] == {"position": count * task.recipe.training.batch}


@pytest.mark.parametrize("share", [0.1, 0.5, 0.75, 1.0])
def test_a_share_of_the_cycles_is_spread_evenly(share: float) -> None:
    taken = [falls_in_share(n, share) for n in range(200)]
    for n in range(1, 201):
        assert abs(sum(taken[:n]) - n * share) < 1
