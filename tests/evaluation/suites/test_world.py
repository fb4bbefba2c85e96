"""The world suite: rows of the truth, of samplers and of folders."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from avd.data import CaptionedFile, write_captions, write_video
from avd.evaluation.folder import read_folder
from avd.evaluation.provenance import code_version, machine
from avd.evaluation.suites.world import OPEN_CAPTIONS, Suite
from avd.types import UserError
from avd.world import World

SUITE = Suite(World(), clips=12, repeats=2, batch=5)


@dataclass
class Painter:
    """Stands for model and sampler at once: "latents" are indices of rendered clips, decoding draws them."""

    steps: int = 4
    network_calls: int = 4
    drawn: int = 0
    seeds: list[int] = field(default_factory=list)

    @property
    def model(self) -> Painter:
        return self

    def __call__(self, prompts: list[str], generator: torch.Generator) -> Tensor:
        self.seeds.append(generator.initial_seed())
        start, self.drawn = self.drawn, self.drawn + len(prompts)
        return torch.arange(start, self.drawn)

    def decode_video(self, latents: Tensor) -> np.ndarray:
        return np.stack([SUITE.world.clip(int(i), "heldout").video for i in latents])


def test_the_truth_is_a_perfect_row() -> None:
    row, videos = SUITE.row_of_truth()
    assert videos.shape == (12, 17, 48, 48, 3)
    assert (row.instance_preservation, row.caption_accuracy, row.clipped_share) == (1.0, 1.0, 0.0)
    assert row.speed_ratio == pytest.approx(1.0)
    assert (row.steps, row.network_calls, row.seconds_per_video, row.videos) == (0, 0, None, 12)


def test_a_sampler_that_draws_the_truth_scores_like_it() -> None:
    painter = Painter()
    row, videos = SUITE.row_of_sampler("painter", painter, seed=3, reference_speed=SUITE.reference_speed())
    truth, rendered = SUITE.row_of_truth()
    assert (videos == rendered).all()
    measures = ("saturation_error", "dynamic_degree", "speed_ratio", "instance_preservation", "caption_accuracy")
    assert all(getattr(row, key) == getattr(truth, key) for key in measures)
    assert (row.steps, row.network_calls, row.seed, row.videos) == (4, 4, 3, 12)
    assert row.seconds_per_video is not None
    assert row.diversity is not None
    assert painter.drawn == 12 + 2 * len(OPEN_CAPTIONS)
    assert len(set(painter.seeds)) == len(painter.seeds)  # no batch repeats another's noise


def test_noise_depends_on_the_seed_alone() -> None:
    seeds = []
    for seed in (0, 0, 1):
        painter = Painter()
        SUITE.row_of_sampler("painter", painter, seed=seed, reference_speed=1.0)
        seeds.append(painter.seeds)
    assert seeds[0] == seeds[1]
    assert not set(seeds[0]) & set(seeds[2])


def test_damage_shows_in_the_row() -> None:
    truth, rendered = SUITE.row_of_truth()
    frozen = np.repeat(rendered[:, :1], rendered.shape[1], axis=1)
    row = SUITE.row_of_videos("frozen", frozen, SUITE.captions(), SUITE.reference_speed())
    assert row.dynamic_degree == 0.0
    assert row.speed_ratio == pytest.approx(0.0, abs=0.02)
    assert truth.dynamic_degree is not None and truth.dynamic_degree > 0.4
    assert row.instance_preservation == 1.0


def _write(folder: Path, count: int) -> None:
    clips = [SUITE.world.clip(i, "heldout") for i in range(count)]
    for i, clip in enumerate(clips):
        write_video(folder / f"{i}.mp4", clip.video, 8)
    write_captions(folder / "captions.jsonl", [CaptionedFile(f"{i}.mp4", c.caption.text) for i, c in enumerate(clips)])


def test_a_folder_of_videos(tmp_path: Path) -> None:
    _write(tmp_path, 4)
    videos, captions = read_folder(tmp_path)
    assert videos.shape == (4, 17, 48, 48, 3)
    assert captions == SUITE.captions()[:4]
    row = SUITE.row_of_videos("folder", videos, captions, SUITE.reference_speed())
    assert row.instance_preservation == 1.0


def test_clips_of_two_lengths_are_refused(tmp_path: Path) -> None:
    _write(tmp_path, 2)
    write_video(tmp_path / "1.mp4", SUITE.world.clip(1, "heldout").video[:9], 8)
    with pytest.raises(UserError, match=r"1\.mp4"):
        read_folder(tmp_path)


def test_provenance() -> None:
    assert code_version().startswith("0.")
    assert "cores" in machine()
