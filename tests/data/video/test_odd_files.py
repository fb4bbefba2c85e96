"""Odd and broken files: each is kept or skipped as the docs say, none stops the run, and the summary counts right."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from avd.data import LatentCache, ReadOptions, Summary, prepare, recommended
from avd.types import Conditions
from helpers.odd_videos import KEPT, SKIPPED, make_folder


class MeanEncoder:
    """A clip's latent is its mean colour."""

    identity = "mean"

    def encode_video(self, frames: np.ndarray) -> Tensor:
        assert frames.dtype == np.uint8 and frames.shape[1:] == (5, 16, 24, 3)
        return torch.from_numpy(frames.mean(axis=(1, 2, 3))).reshape(-1, 3, 1, 1, 1)

    def encode_prompts(self, prompts: list[str]) -> Conditions:
        return Conditions({"embedding": torch.zeros(len(prompts), 2, 2)})

    def drop(self, *parts: str) -> None:
        """There are none."""


def run(videos: Path, cache: Path, workers: int = 0) -> Summary:
    reading = ReadOptions(5, 8, (16, 24), 1, checks=recommended(8, 16, 24))
    summary = prepare(videos, None, MeanEncoder(), cache, reading, workers=workers)
    assert summary is not None
    return summary


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Summary]:
    folder = tmp_path_factory.mktemp("odd")
    make_folder(folder / "videos")
    return folder, run(folder / "videos", folder / "cache")


def test_each_is_kept_or_skipped_as_documented(odd: tuple[Path, Summary]) -> None:
    folder, _ = odd
    found = {skip["file"]: skip["reason"] for skip in map(json.loads, (folder / "cache/skipped.jsonl").open())}
    items = LatentCache(folder / "cache").items
    assert {item.caption for item in items} == {"a caption"}
    found |= {item.file: "kept" for item in items}
    expected = {name: "kept" for name in KEPT} | {name: reason for name, (_, reason) in SKIPPED.items()}
    assert found == expected
    assert len(expected) >= 60


def test_the_summary_counts_right(odd: tuple[Path, Summary]) -> None:
    folder, summary = odd
    assert summary.kept == summary.files == len(KEPT)
    assert summary.skipped == Counter(reason for _, reason in SKIPPED.values())
    assert all(skip.reason == reason and SKIPPED[skip.file][1] == reason for reason, skip in summary.examples.items())
    assert summary.seconds == len(KEPT) * 5 / 8
    assert summary.source_seconds > summary.seconds
    assert summary.size == sum(path.stat().st_size for path in (folder / "cache").rglob("*") if path.is_file())


def test_colours_survive_every_format(odd: tuple[Path, Summary]) -> None:
    cache = LatentCache(odd[0] / "cache")
    means = cache.latents(range(len(cache))).flatten(1)
    off = {
        item.file: mean.tolist()
        for item, mean in zip(cache.items, means, strict=True)
        if (mean - torch.tensor(KEPT[item.file][1])).abs().max() > 4
    }
    assert not off
