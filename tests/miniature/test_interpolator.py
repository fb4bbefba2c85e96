"""Training the interpolator: it learns what linear interpolation cannot, and resumes to the same bytes."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from avd.config import InterpolatorRecipe
from avd.data.cache import MemoryLatents
from avd.engine.loop import Schedule, run
from avd.engine.run_folder import RunFolder
from avd.miniature.interpolator import InterpolatorTask, check_clips, count_heldout, missing_error
from avd.models.interpolator import FrameInterpolator
from avd.types import Conditions, UserError

TINY = InterpolatorRecipe(updates=6, batch=4, warmup=2, widths=(8, 16), noise=0.1)


def waves(count: int, seed: int, frames: int = 5) -> Tensor:
    """Travelling sine waves (count, 2, frames, 6, 6): the mean of two crests apart is a wave too low."""
    generator = torch.Generator().manual_seed(seed)
    start, direction = 2 * math.pi * torch.rand(2, count, 1, 1, 1, 1, generator=generator)
    pace = 0.9 + 0.4 * torch.rand(count, 1, 1, 1, 1, generator=generator)
    channel, frame, row, column = torch.meshgrid(*map(torch.arange, (2, frames, 6, 6)), indexing="ij")
    return torch.sin(start + channel + direction.cos() * row + direction.sin() * column - pace * frame)


def source(count: int = 64, frames: int = 5, seed: int = 1) -> MemoryLatents:
    latents = waves(count, seed=seed, frames=frames)
    return MemoryLatents(latents, Conditions({"embedding": torch.zeros(count, 1, 1)}), [""] * count)


def heldout(count: int = 6, frames: int = 5) -> MemoryLatents:
    return source(count, frames, seed=2)


def silent(done: int, updates: int, metrics: Mapping[str, float], left: float | None) -> None:
    """Progress nobody sees."""


def train(path: Path, config: InterpolatorRecipe, updates: int, *, resume: bool = False) -> None:
    task = InterpolatorTask(config, source(), heldout())
    folder = RunFolder(path, resume=resume, recipe_text="")
    run(task, folder, Schedule(updates, checkpoint_every=1, validate_every=3), silent)


def test_training_beats_linear_interpolation(tmp_path: Path) -> None:
    config = InterpolatorRecipe(updates=80, batch=16, learning_rate=5e-3, warmup=5, widths=(8, 16), ema=0.9)
    task = InterpolatorTask(config, source(), heldout(32))
    before = task.validate(0)
    assert before["heldout_ratio"] == pytest.approx(1.0)
    for n in range(config.updates):
        task.update(n)
    after = task.validate(config.updates)
    assert after["heldout_linear_mse"] == before["heldout_linear_mse"]
    assert after["heldout_mse"] < 0.25 * after["heldout_linear_mse"]

    task.export(tmp_path)
    filled = FrameInterpolator.load(tmp_path / "interpolator")(waves(32, seed=2)[:, :, ::2])
    assert missing_error(filled, waves(32, seed=2)).mean().item() == pytest.approx(after["heldout_mse"])


def test_training_in_space_beats_linear_interpolation_of_each_kind(tmp_path: Path) -> None:
    config = InterpolatorRecipe(updates=90, batch=16, learning_rate=8e-3, warmup=5, widths=(8, 16), ema=0.9, space=True)
    task = InterpolatorTask(config, source(), heldout(32))
    before = task.validate(0)
    kinds = ("heldout", "heldout_space", "heldout_both")
    assert [before[f"{kind}_ratio"] for kind in kinds] == pytest.approx([1.0, 1.0, 1.0])
    for n in range(config.updates):
        task.update(n)
    after = task.validate(config.updates)
    assert all(after[f"{kind}_ratio"] < 0.6 for kind in kinds), after

    task.export(tmp_path)
    x = waves(32, seed=2)
    filled = FrameInterpolator.load(tmp_path / "interpolator")(x[:, :, ::2, ::2, ::2], space=True)
    assert missing_error(filled, x, (2, 2)).mean().item() == pytest.approx(after["heldout_both_mse"])


def test_the_error_is_that_of_the_missing_frames() -> None:
    x = torch.randn(2, 3, 5, 4, 4)
    filled = x.clone()
    filled[:, :, ::2] += 7.0
    filled[1, :, 1] += 2.0  # one of its two missing frames is off by 2
    torch.testing.assert_close(missing_error(filled, x), torch.tensor([0.0, 2.0]))
    everywhere = x + 3.0
    everywhere[:, :, ::2, ::2, ::2] = 99.0
    torch.testing.assert_close(missing_error(everywhere, x, (2, 2)), torch.tensor([9.0, 9.0]))


def test_a_resumed_run_gives_the_same_bytes(tmp_path: Path) -> None:
    train(tmp_path / "uninterrupted", TINY, 6)
    train(tmp_path / "killed", TINY, 3)
    train(tmp_path / "killed", TINY, 6, resume=True)
    for file in (
        "interpolator/model.safetensors",
        "interpolator/config.json",
        "checkpoints/step-0000006/tensors-00000-of-00001.safetensors",
        "checkpoints/step-0000006/state.json",
    ):
        assert (tmp_path / "uninterrupted" / file).read_bytes() == (tmp_path / "killed" / file).read_bytes()
    uninterrupted, killed = (_metrics(tmp_path / name / "metrics.jsonl") for name in ("uninterrupted", "killed"))
    assert uninterrupted == killed
    assert [line["update"] for line in uninterrupted if "heldout_ratio" in line] == [2, 5]


def test_seed_and_noise_change_the_run(tmp_path: Path) -> None:
    losses = set()
    for config in (TINY, TINY.model_copy(update={"seed": 1}), TINY.model_copy(update={"noise": 0.0})):
        task = InterpolatorTask(config, source(), heldout())
        losses.add(task.update(0).metrics["loss"])
    assert len(losses) == 3


class ReadClips:
    """Clips that note the size of each read, and the thread that reads."""

    def __init__(self, clips: MemoryLatents) -> None:
        self._clips = clips
        self.reads: list[tuple[int, str]] = []

    def __len__(self) -> int:
        return len(self._clips)

    def latents(self, indices: Sequence[int]) -> Tensor:
        self.reads.append((len(indices), threading.current_thread().name.partition("_")[0]))
        return self._clips.latents(indices)


def test_no_more_than_a_batch_is_read_at_once_and_the_next_one_ahead() -> None:
    config = TINY.model_copy(update={"batch": 4, "updates": 3})
    seen, unseen = ReadClips(source()), ReadClips(heldout(10))
    task = InterpolatorTask(config, seen, unseen)
    assert seen.reads == unseen.reads == [(1, "MainThread")]  # for their shape
    for n in range(config.updates):
        task.update(n)
    assert sorted(seen.reads[1:]) == [(4, "MainThread"), (4, "read"), (4, "read")]
    task.validate(config.updates)
    assert [size for size, _ in unseen.reads[1:]] == [4, 4, 2]


def test_what_is_read_ahead_is_of_the_update_that_it_is_for() -> None:
    """A run that is sent to another update reads that one's clips."""
    task, other = (InterpolatorTask(TINY, source(), heldout()) for _ in range(2))
    task.update(0)
    task.load(other.tensors(), {})
    assert task.update(3).metrics == other.update(3).metrics


def test_few_clips_are_held_out_of_many() -> None:
    counts = [count_heldout(count, 256) for count in (2, 39, 40, 4096, 5120, 150_000)]
    assert counts == [1, 1, 2, 204, 256, 256]


def test_clips_that_cannot_be_halved_are_refused() -> None:
    with pytest.raises(UserError, match="4 latent frames"):
        InterpolatorTask(TINY, source(frames=4), heldout(frames=4))
    with pytest.raises(UserError, match="1 latent frames"):
        InterpolatorTask(TINY, source(frames=1), heldout(frames=1))
    with pytest.raises(UserError, match="latents of 6 x 5"):
        check_clips(4, (2, 5, 6, 5), space=True)
    with pytest.raises(UserError, match="held-out clips of"):
        InterpolatorTask(TINY, source(), heldout(frames=7))


def _metrics(metrics: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]
