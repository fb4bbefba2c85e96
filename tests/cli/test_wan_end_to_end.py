"""A run at Wan2.1-1.3B's true widths, cut to 2 layers, as somebody on a cluster makes it, with all that can happen.

Two processes prepare videos of which some are not fit; a first run makes a student and a fake score; a second one of
two processes begins with both, is killed, and resumes as one process; its checkpoint becomes a student.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from avd.data import LatentCache, read_video, write_video
from avd.data.cache import read_skipped
from avd.data.texts import EncodedTexts
from avd.engine.checkpoint import list_checkpoints, load_checkpoint
from avd.models.family import load_model
from avd.models.weights import read_tensor
from helpers.command import avd
from helpers.processes import end_of, start_ranks
from helpers.teachers import publish

PROMPT = "a red ball drifts left"
LAYER = "blocks.1.attn1.to_q.weight"
SIZE = 32
SETTINGS = (
    "model=wan",
    "roles=adapters",
    "adapters.rank=4",
    "adapters.merge=false",
    "rollout.half_rate_stages=0",
    "fake_score.updates=1",
    "student.optimizer.learning_rate=1e-3",
    "fake_score.optimizer.learning_rate=1e-3",
    "compute.checkpointing=full",
    "training.batch=2",
    "training.checkpoint_every=1",
    "training.sample_every=0",
    "monitors.every=0",
)


@pytest.fixture(scope="module", autouse=True)
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A working directory with the model `wan`, the `cache`, and the run `first`."""
    before, folder = Path.cwd(), tmp_path_factory.mktemp("wan")
    os.chdir(folder)
    try:
        publish("wan2.1-1.3b", Path("wan"), dtype=torch.float32)
        assert avd("world", "render", "--output", "clips", "--count", 3, "--size", SIZE) == 0
        spoil(Path("clips"))
        sizes = ("--frames", 9, "--fps", 8, "--height", SIZE, "--width", SIZE, "--min-size", 24, "--workers", 0)
        together("prepare", "clips", "--model", "wan", "--output", "cache", *map(str, sizes))
        assert avd("distill", "avd-wan2.1-1.3b", "--data", "cache", "--output", "first", *settings(1)) == 0
        yield
    finally:
        os.chdir(before)
        shutil.rmtree(folder)


def spoil(clips: Path) -> None:
    """Add a black video, one with a cut, and a small one."""
    noise = np.random.default_rng(0).integers(0, 256, (2, SIZE // 8, SIZE // 8, 3)).repeat(8, 1).repeat(8, 2)
    scenes = noise.astype(np.uint8).repeat(6, 0)
    spoilt = {"black": np.zeros_like(scenes), "cut": scenes, "small": scenes[:, :16, :16]}
    with (clips / "captions.jsonl").open("a") as captions:
        for name, frames in spoilt.items():
            write_video(clips / f"{name}.mp4", frames, 8)
            captions.write(json.dumps({"file": f"{name}.mp4", "caption": PROMPT}) + "\n")


def settings(updates: int, *more: str) -> list[str]:
    changes = (*SETTINGS, f"training.updates={updates}", *more)
    return [word for change in changes for word in ("--set", change)]


def together(*arguments: str) -> None:
    """`avd ARGUMENTS` in two processes."""
    for code, errors in end_of(start_ranks(2, "avd", *arguments)):
        assert code == 0, errors


def test_what_is_not_fit_is_left_out_with_its_reason() -> None:
    cache = LatentCache("cache")
    assert len(cache) == 3 and cache.latent_shape == (16, 3, 4, 4)
    assert {skip.file: skip.reason for skip in read_skipped(Path("cache"))} == {
        "black.mp4": "black",
        "cut.mp4": "hard cut",
        "small.mp4": "too small",
    }
    cache.verify()


def test_a_second_run_is_killed_resumed_exported_and_generates(capsys: pytest.CaptureFixture[str]) -> None:
    more = ("student.start=first", "fake_score.start=first")
    distill = ("distill", "avd-wan2.1-1.3b", "--data", "cache", "--output", "second")
    processes = start_ranks(2, "avd", *distill, *settings(1000, *more))
    try:
        while not list_checkpoints(Path("second/checkpoints")):
            assert all(process.poll() is None for process in processes)
            time.sleep(0.05)
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    done = load_checkpoint(list_checkpoints(Path("second/checkpoints"))[-1])[1]["step"]
    resumed = settings(done + 1, *more)
    assert avd(*distill, "--resume", *resumed) == 0
    updates = [json.loads(line)["update"] for line in Path("second/metrics.jsonl").read_text().splitlines()]
    assert updates == list(range(done + 1))

    export = ("export", "second", "--checkpoint", done + 1, "--format", "diffusers", "--output", "student")
    assert avd(*export) == 0
    weights = {name: load_model(name).weights() for name in ("wan", "first/student", "student")}
    base, first, found = (read_tensor(each, LAYER) for each in weights.values())
    assert not torch.equal(found, base)
    # It began as the first run's student: what that had learnt is in it.
    learnt, now = (first - base).flatten(), (found - base).flatten()
    assert torch.nn.functional.cosine_similarity(learnt, now, dim=0) > 0.5
    assert torch.equal(found, read_tensor(load_model("second/student").weights(), LAYER))

    assert avd("export", "second", "--format", "diffusers", "--dtype", "bfloat16", "--output", "half") == 0
    assert re.search(r"rounding to bfloat16 moves the weights by \d+\.\d% of their way", capsys.readouterr().err)
    rounded = read_tensor(load_model("half").weights(), LAYER)
    assert rounded.dtype == torch.bfloat16 and torch.equal(rounded, found.bfloat16())

    assert avd("generate", "student", "--prompt", PROMPT, "--output", "ball.mp4") == 0
    assert read_video(Path("ball.mp4")).frames.shape == (9, SIZE, SIZE, 3)


def test_the_unconditional_branch_is_the_negative_prompt() -> None:
    """Wan's own, from the cache: training loads no text encoder."""
    model = load_model("wan")
    text = model.settings.negative_prompt
    assert text
    unconditional = EncodedTexts(Path("cache")).conditions([text])
    torch.testing.assert_close(
        unconditional["embedding"], model.encode_prompts([text])["embedding"], rtol=1e-2, atol=1e-2
    )
