"""Clips cut from videos: one after the other, after a start that is skipped, or spread."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from avd.data import VideoError, write_video
from avd.data.video.reading import ReadOptions, Window, read_windows
from avd.data.video.sources import VideoSource
from avd.types import UserError
from helpers.footage import numbers, shades


def test_windows_follow_one_another(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", shades(14), 8)

    def windows(count: int, after: float | None = None) -> list[tuple[float, list[int]]]:
        found = read_windows(VideoSource("a", tmp_path / "a.mp4"), ReadOptions(4, 8, (16, 16), count), after)
        return [(window.start, numbers(window.frames)) for window in found if isinstance(window, Window)]

    every = [(0.0, [0, 1, 2, 3]), (0.5, [4, 5, 6, 7]), (1.0, [8, 9, 10, 11])]  # what is left is no window
    assert windows(9) == every
    assert windows(2) == every[:2]
    assert windows(9, after=0.0) == every[1:]
    assert windows(9, after=1.0) == []


@pytest.mark.parametrize(
    ("changes", "windows"),
    [
        ({"skip_start": 0.5}, [(0.5, 4), (1.0, 8), (1.5, 12)]),
        ({"skip_start": 0.3}, [(0.375, 3), (0.875, 7), (1.375, 11)]),
        ({"spread": True}, [(0.125, 1), (0.875, 7), (1.625, 13)]),
        ({"spread": True, "windows": 1}, [(0.875, 7)]),
        ({"spread": True, "windows": 99}, [(0.0, 0), (0.5, 4), (1.125, 9), (1.625, 13)]),
        ({"spread": True, "skip_start": 1.0}, [(1.0, 8), (1.625, 13)]),
    ],
)
def test_windows_skip_the_start_and_are_spread(
    tmp_path: Path, changes: dict[str, Any], windows: list[tuple[float, int]]
) -> None:
    write_video(tmp_path / "a.mp4", shades(18), 8)
    source, options = VideoSource("a", tmp_path / "a.mp4"), replace(ReadOptions(4, 8, (16, 16), 3), **changes)
    found = [window for window in read_windows(source, options) if isinstance(window, Window)]
    assert [(window.start, numbers(window.frames)) for window in found] == [
        (start, list(range(first, first + 4))) for start, first in windows
    ]
    for done, window in enumerate(found):  # resumed after any of them, the rest is the same
        rest = [each.start for each in read_windows(source, options, window.start)]
        assert rest == [each.start for each in found[done + 1 :]]


def test_a_start_past_the_end_is_too_short(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", shades(8), 8)
    with pytest.raises(VideoError, match="holds 0 frames at 8 fps from 3 s on, 4 are needed"):
        list(read_windows(VideoSource("a", tmp_path / "a.mp4"), ReadOptions(4, 8, (16, 16), 1, skip_start=3)))


def test_one_window_of_a_long_video_is_in_memory(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", shades(1).repeat(400, axis=0), 8)
    tracemalloc.start()
    peaks = []
    for _ in read_windows(VideoSource("a", tmp_path / "a.mp4"), ReadOptions(4, 8, (64, 64), 100)):
        peaks.append(tracemalloc.get_traced_memory()[1])
    tracemalloc.stop()
    assert len(peaks) == 100
    assert peaks[-1] < 1.5 * peaks[1] < 100 * 4 * 64 * 64 * 3 / 4


@pytest.mark.parametrize("wrong", [{"fps": 0}, {"picture_fps": 0}, {"picture_fps": float("nan")}])
def test_rates_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="fps is"):
        replace(ReadOptions(4, 8, (16, 16), 1), **wrong)


@pytest.mark.parametrize("wrong", [-1.0, float("inf"), float("nan")])
def test_a_start_that_makes_no_sense_is_refused(wrong: float) -> None:
    with pytest.raises(UserError, match="s to skip at the start"):
        ReadOptions(4, 8, (16, 16), 1, skip_start=wrong)
