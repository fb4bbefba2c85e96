"""Preparation killed with signal 9 and continued ends with the same bytes, by however many processes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from avd.data import write_video
from helpers import kill_preparation
from helpers.command import snapshot
from helpers.odd_videos import noise, zeroed


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of one to three windows, two of them of one caption, one damaged after two windows, and two bad ones."""
    folder = tmp_path_factory.mktemp("videos")
    for index, frames in enumerate([5, 16, 30, 12, 20, 9]):
        level = np.arange(frames, dtype=np.uint8)[:, None, None, None] * 4 + 20 * index
        write_video(folder / f"{index}.mp4", np.broadcast_to(level, (frames, 32, 32, 3)), 8)
        (folder / f"{index}.txt").write_text(f"{index % 5} caption")
    (folder / "1.5.mp4").write_bytes(b"no video")
    (folder / "1.5.txt").write_text("bad")
    (folder / "4.5.mp4").write_bytes((folder / "2.mp4").read_bytes())
    zeroed(0.8, 0.9, frames=noise(15))(folder / "6.mp4")
    (folder / "6.txt").write_text("6 damaged")
    return folder


@pytest.fixture(scope="module")
def straight(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    cache = tmp_path_factory.mktemp("straight") / "cache"
    kill_preparation.run(videos, cache, workers=0)
    return cache


def test_there_is_something_to_continue(straight: Path) -> None:
    manifest = json.loads((straight / "manifest.json").read_text())
    assert [shard["items"] for shard in manifest["shards"]] == [4, 4, 4, 3]
    skipped = [json.loads(line) for line in (straight / "skipped.jsonl").read_text().splitlines()]
    assert [(skip["file"], skip["kept"]) for skip in skipped] == [("1.5.mp4", 0), ("4.5.mp4", 0), ("6.mp4", 2)]


@pytest.mark.parametrize(("workers", "moments"), [(1, ["end", "between windows"]), (3, [*kill_preparation.MOMENTS])])
def test_killed_and_continued_it_ends_with_the_same_bytes(
    workers: int, moments: list[str], videos: Path, straight: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "helpers.kill_preparation", videos, tmp_path, workers, *moments]
    subprocess.run([str(word) for word in command], check=True, timeout=600)
    for moment in moments:
        assert snapshot(tmp_path / f"{workers}-{moment}") == snapshot(straight), moment
