"""The sampling driver: what is made, by whom, and what is not made again."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from avd.engine.randomness import derive_seed, generator_for
from avd.engine.ranks import SINGLE_PROCESS
from avd.evaluation.sampling import agree_on_tiling, batch_size, sample_clips
from avd.evaluation.suite import Prompt
from avd.models.wan.model import VideoModel
from avd.sampling.choose import make_sampler
from avd.sampling.placement import PlacedModel, Placement
from avd.types import UserError
from helpers.painter import Painter
from helpers.tiny import tiny_interpolator, tiny_model

PROMPTS = [Prompt(text, repeat) for text in ("a ball", "a box", "a ring", "one thing") for repeat in range(3)]


class Killed(Exception):
    pass


class Mortal(Painter):
    """Is killed while it makes its third batch."""

    def decode_video(self, latents: Tensor) -> np.ndarray:
        if len(self.seeds) == 3:
            raise Killed
        return super().decode_video(latents)


def clips_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("clip-*")}


def test_clips_are_written_without_loss_and_read_back_in_order(tmp_path: Path) -> None:
    painter = Painter()
    samples = sample_clips(painter, PROMPTS, tmp_path, seed=3, batch=5)
    assert [prompt for batch in painter.prompts for prompt in batch] == [prompt.text for prompt in PROMPTS]
    found = list(samples.clips())
    assert [clip.prompt for clip in found] == PROMPTS
    generator = generator_for(3, "samples", 5)
    expected = painter.decode_video(torch.randint(40, (5,), generator=generator))
    for clip, frames in zip(found[5:10], expected, strict=True):
        video = clip.read()
        np.testing.assert_array_equal(video.frames, frames)
        assert video.fps == 8


def test_noise_depends_on_the_seed_and_the_batch_alone(tmp_path: Path) -> None:
    seeds = []
    for i, seed in enumerate((0, 0, 1)):
        painter = Painter()
        sample_clips(painter, PROMPTS, tmp_path / str(i), seed=seed, batch=5)
        assert len(set(painter.seeds)) == len(painter.seeds) == 3  # no batch repeats another's noise
        seeds.append(painter.seeds)
    assert seeds[0] == seeds[1]
    assert not set(seeds[0]) & set(seeds[2])
    assert clips_in(tmp_path / "0") == clips_in(tmp_path / "1") != clips_in(tmp_path / "2")


def test_killed_and_run_again_it_makes_what_is_missing(tmp_path: Path) -> None:
    sample_clips(Painter(), PROMPTS, tmp_path / "calm", seed=0, batch=3)
    with pytest.raises(Killed):
        sample_clips(Mortal(), PROMPTS, tmp_path / "killed", seed=0, batch=3)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "killed").iterdir()}
    assert len(clips_in(tmp_path / "killed")) == 6
    again = Painter()
    samples = sample_clips(again, PROMPTS, tmp_path / "killed", seed=0, batch=3)
    assert len(again.seeds) == 2
    assert clips_in(tmp_path / "killed") == clips_in(tmp_path / "calm")
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    assert len(list(samples.clips())) == len(PROMPTS)


@pytest.mark.parametrize("lost", ["batch-000005.json", "clip-000007.safetensors"])
def test_a_lost_file_costs_its_batch(lost: str, tmp_path: Path) -> None:
    samples = sample_clips(Painter(), PROMPTS, tmp_path, seed=0, batch=5)
    before = clips_in(tmp_path)
    (tmp_path / lost).unlink()
    with pytest.raises(UserError, match="lacks 1 of 3 batches"):
        next(samples.clips())
    painter = Painter()
    sample_clips(painter, PROMPTS, tmp_path, seed=0, batch=5)
    assert painter.seeds == [derive_seed(0, "samples", 5)] and clips_in(tmp_path) == before


def test_what_was_sampled_is_removed_and_nothing_else(tmp_path: Path) -> None:
    samples = sample_clips(Painter(), PROMPTS, tmp_path / "clips", seed=0, batch=5)
    (tmp_path / "clips" / "mine.txt").write_text("notes")
    samples.remove()
    assert [path.name for path in (tmp_path / "clips").iterdir()] == ["mine.txt"]
    (tmp_path / "clips" / "mine.txt").unlink()
    sample_clips(Painter(), PROMPTS, tmp_path / "clips", seed=0, batch=5).remove()
    assert not (tmp_path / "clips").exists()


def test_the_time_of_batches_made_before_is_kept(tmp_path: Path) -> None:
    sample_clips(Painter(), PROMPTS, tmp_path, seed=0, batch=5)
    for start, seconds in ((0, 6.0), (5, 12.0), (10, 18.0)):
        path = tmp_path / f"batch-{start:06d}.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"seconds": seconds}))
    assert sample_clips(Painter(), PROMPTS, tmp_path, seed=0, batch=5).seconds_per_video() == 3.0


@pytest.mark.parametrize("size", [2, 3, 7])
def test_processes_share_the_batches(size: int, tmp_path: Path) -> None:
    sample_clips(Painter(), PROMPTS, tmp_path / "alone", seed=0, batch=2)
    painters = [Painter() for _ in range(size)]
    for rank, painter in enumerate(painters):
        shared = sample_clips(painter, PROMPTS, tmp_path / "shared", seed=0, batch=2, rank=rank, size=size)
    assert sorted(seed for painter in painters for seed in painter.seeds) == sorted(
        derive_seed(0, "samples", start) for start in range(0, 12, 2)
    )
    counts = [len(painter.seeds) for painter in painters]
    assert max(counts) - min(counts) <= 1
    assert clips_in(tmp_path / "shared") == clips_in(tmp_path / "alone")
    assert [clip.prompt for clip in shared.clips()] == PROMPTS


def test_progress_counts_the_clips_of_this_process(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    for _ in range(2):  # the second time all are there
        sample_clips(
            Painter(), PROMPTS, tmp_path, seed=0, batch=5, rank=0, size=2, progress=lambda *now: seen.append(now)
        )
    assert seen == [(5, 7), (7, 7), (7, 7)]


@pytest.mark.parametrize("other", [{"seed": 1}, {"batch": 4}, {"prompts": PROMPTS[::-1]}, {"identity": "another"}])
def test_clips_made_from_something_else_are_refused(other: dict[str, object], tmp_path: Path) -> None:
    same = {"seed": 0, "batch": 5, "prompts": PROMPTS, "identity": "painter"}

    def sample(seed: int, batch: int, prompts: list[Prompt], identity: str) -> None:
        sample_clips(Painter(identity=identity), prompts, tmp_path, seed=seed, batch=batch)

    sample(**same)  # type: ignore[arg-type]
    before = clips_in(tmp_path)
    with pytest.raises(UserError, match="another model, seed or set of prompts"):
        sample(**(same | other))  # type: ignore[arg-type]
    assert clips_in(tmp_path) == before


def test_clips_of_another_model_are_found_before_anything_is_made(tmp_path: Path) -> None:
    sample_clips(Painter(), PROMPTS, tmp_path, seed=0, batch=5, rank=2, size=3)  # the last batch alone
    painter, before = Painter(), clips_in(tmp_path)
    with pytest.raises(UserError, match="another model"):
        sample_clips(painter, PROMPTS, tmp_path, seed=1, batch=4)
    assert not painter.seeds and clips_in(tmp_path) == before


def test_a_broken_record_is_named(tmp_path: Path) -> None:
    sample_clips(Painter(), PROMPTS, tmp_path, seed=0, batch=5)
    (tmp_path / "batch-000005.json").write_text("{")
    with pytest.raises(UserError, match=r"batch-000005\.json is not a record"):
        sample_clips(Painter(), PROMPTS, tmp_path, seed=0, batch=5)


@pytest.mark.parametrize(
    ("shape", "clips"),
    [
        ((12, 5, 6, 6), 16),  # the miniature
        ((16, 21, 60, 104), 1),  # Wan2.1 at 480p
        ((48, 31, 44, 80), 1),  # Wan2.2-TI2V at 704p
        ((16, 5, 30, 52), 4),
    ],
)
def test_the_batch_comes_from_the_size_of_the_latents(shape: tuple[int, int, int, int], clips: int) -> None:
    assert batch_size(Painter(shape=shape)) == clips


def _same_weights(model: VideoModel) -> VideoModel:
    return model


def _another_bias(model: VideoModel) -> VideoModel:
    with torch.no_grad():
        model.velocity().transformer.proj_out.bias[0] += 0.01
    return model


@pytest.mark.parametrize(
    ("change", "options", "same"),
    [
        (_same_weights, {"steps": 4}, True),
        (_another_bias, {"steps": 4}, False),
        (_same_weights, {"steps": 5}, False),
        (_same_weights, {"steps": 4, "guidance": 1.0}, False),
        (_same_weights, {"steps": 4, "solver": "unipc"}, False),
    ],
)
def test_a_samplers_identity_changes_with_all_that_its_videos_depend_on(change, options, same) -> None:  # type: ignore[no-untyped-def]
    first = make_sampler(tiny_model(), steps=4).identity
    assert (make_sampler(change(tiny_model()), **options).identity == first) == same


def test_a_students_identity_changes_with_rate_and_interpolator() -> None:
    from avd.sampling.samplers import FewSteps

    model, timesteps = tiny_model(), (1000.0, 757.0, 522.0)
    identities = {
        FewSteps(model, timesteps, stages, interpolator).identity
        for stages, interpolator in (
            (0, None),
            (1, tiny_interpolator()),
            (2, tiny_interpolator()),
            (1, tiny_interpolator(1)),
        )
    }
    assert len(identities) == 4
    assert FewSteps(model, timesteps, 0, tiny_interpolator()).identity in identities  # it is not used


def test_free_memory_changes_no_clips_that_are_shared_or_taken_up_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first process needs tiles, the second does not, and a later one would not either."""
    monkeypatch.setattr(Placement, "fit_to", lambda self, model: self.fit_into(free.pop(0), model.sizes, 16 * 16))
    free, model = [2e9, 79e9, 79e9], tiny_model()
    for rank in range(2):
        placement = agree_on_tiling(Placement(), model, tmp_path, SINGLE_PROCESS)
        sampler = make_sampler(PlacedModel(model, replace(placement, offload="none")), steps=1)
        sample_clips(sampler, PROMPTS, tmp_path, seed=0, batch=6, rank=rank, size=2)
        assert placement.tiling
    untiled = agree_on_tiling(Placement(tiling=False), model, tmp_path, SINGLE_PROCESS)
    sampler = make_sampler(PlacedModel(model, replace(untiled, offload="none")), steps=1)
    with pytest.raises(UserError, match="holds clips of another model"):
        sample_clips(sampler, PROMPTS, tmp_path, seed=0, batch=6)


def test_the_first_process_waits_for_files_however_long_the_others_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    naps, seen = iter(range(9)), []

    def sleep(seconds: float) -> None:
        if next(naps) == 2:
            sample_clips(Painter(), PROMPTS, tmp_path, seed=0, batch=3, rank=1, size=2)

    monkeypatch.setattr("avd.evaluation.sampling.time.sleep", sleep)
    samples = sample_clips(Painter(), PROMPTS, tmp_path, seed=0, batch=3, rank=0, size=2)
    samples.wait(lambda done, total: seen.append((done, total)))
    assert seen == [(2, 4)] * 3 + [(4, 4)] and len(list(samples.clips())) == len(PROMPTS)
    samples.remove()
    assert not tmp_path.exists()


@pytest.mark.parametrize("offload", ["none", "blocks"])
def test_parts_that_take_turns_make_the_same_clips(offload: Any, tmp_path: Path) -> None:
    placed = PlacedModel(tiny_model(), Placement(offload=offload, tiling=False))
    for name, model in {"at once": tiny_model(), "in turns": placed}.items():
        sample_clips(make_sampler(model, steps=2), PROMPTS, tmp_path / name, seed=0, batch=5)
    assert clips_in(tmp_path / "in turns") == clips_in(tmp_path / "at once")
    assert len(placed._encoded) == 4  # three batches and the negative prompt
