"""A cache described: known latents and pictures give known metrics."""

from __future__ import annotations

import math
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch

from avd.data import CacheWriter, Geometry, Item, LatentCache, Skip, encode_texts
from avd.evaluation.cache_report import evenly_spaced, report_on, report_on_pixels
from avd.types import Conditions


class Letters:
    """An encoder of texts."""

    identity = "x"

    def encode_prompts(self, prompts: list[str]) -> Conditions:
        return Conditions({"embedding": torch.ones(len(prompts), 3, 4)})


@pytest.fixture
def cache(tmp_path: Path) -> LatentCache:
    """Eight clips of two latent frames: two of them 0 and 0 (still), six -1 and +1, so variance over frames is 1."""
    writer = CacheWriter(tmp_path / "cache", identity="x", geometry=Geometry(5, 8, 8, 10.0), shard_size=3)
    writer.skip(Skip("a.mp4", "unreadable", "cannot be decoded"))
    for i in range(8):
        latent = torch.zeros(2, 2, 2, 2) if i < 2 else torch.tensor([-1.0, 1.0]).view(1, 2, 1, 1).expand(2, 2, 2, 2)
        writer.add(latent, Item("a red ball" if i % 2 else "one", f"{i // 3}.mp4", i % 3 / 2, 2.5, i % 3))
    writer.finish()
    encode_texts(tmp_path / "cache", Letters(), ["a red ball", "one"])
    return LatentCache(tmp_path / "cache")


def test_the_metrics_are_those_of_the_latents(cache: LatentCache) -> None:
    report = report_on(cache)
    assert (report.clips, report.sampled, report.seconds) == (8, 8, 4.0)
    assert (report.files, report.clips_per_file, report.source_seconds) == (3, (2, 3), 7.5)
    assert (report.different_captions, report.words) == (2, (1, 3))
    assert report.skipped == {"unreadable": 1}
    assert report.still_share == 0.25
    assert report.repeated_share == (3 + 2 * 2) / (8 * 4)  # of 4 frames each that may repeat another
    assert report.upsampled_share == 5 / 8
    assert report.latent_mean == 0.0
    assert report.latent_std == pytest.approx(math.sqrt(0.75 * 128 / 127))
    assert report.temporal_loss == pytest.approx(-math.log(0.75), abs=1e-5)
    assert report_on(cache, sample=4).sampled == 4


@pytest.mark.parametrize(("count", "sample", "indices"), [(10, 4, [0, 3, 6, 9]), (3, 9, [0, 1, 2]), (5, 1, [0])])
def test_indices_are_spread_over_the_cache(count: int, sample: int, indices: list[int]) -> None:
    assert evenly_spaced(count, sample) == indices


def test_pixels_of_a_plain_clip() -> None:
    red = np.zeros((1, 2, 4, 4, 3), np.uint8)
    red[..., 0], red[:, 1, ..., 1:] = 255, 255  # a red frame, then a white one
    report = report_on_pixels(red)
    assert report.saturation == pytest.approx(0.5)
    assert report.brightness == pytest.approx((1 / 3 + 1) / 2)
    assert report.contrast == pytest.approx(0.0, abs=1e-6)
    assert report.change == pytest.approx(2 / 3)
    assert report_on_pixels(red[:, :1]).change == 0.0


def test_pixels_are_those_of_their_definitions_and_no_more_than_a_frame_is_held_in_floats() -> None:
    videos = np.random.default_rng(0).integers(0, 256, (4, 9, 120, 160, 3), dtype=np.uint8)
    tracemalloc.start()
    report = report_on_pixels(videos)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    unit = videos / 255
    assert report.brightness == pytest.approx(unit.mean(), rel=1e-12)
    assert report.change == pytest.approx(np.abs(np.diff(unit, axis=1)).mean(), rel=1e-12)
    assert most < videos.nbytes
