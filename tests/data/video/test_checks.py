"""What is asked of videos: each check refuses what it is for, by its reason, and can be switched off."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from avd.data import Checks, VideoError, read_video, recommended, write_video
from avd.data.video.checks import examine
from avd.data.video.reading import ReadOptions, RefusedWindow, Window, read_windows
from avd.data.video.sources import VideoSource
from avd.types import UserError
from avd.world import World
from helpers.footage import pan, still
from helpers.odd_videos import encode

FPS, SIDE, COUNT = 8, 96, 9
STRICT = Checks(min_motion=0.001, max_black=0.1, cuts=False)


def pixels(frames: np.ndarray) -> np.ndarray:
    return (frames * 255).astype(np.uint8)


def outcomes(path: Path, checks: Checks, windows: int = 1, **changes: Any) -> list[str]:
    """ "kept", or the reason, of each window of a file; of the file itself it comes last."""
    options = replace(ReadOptions(COUNT, FPS, (SIDE, SIDE), windows, checks=checks), **changes)
    found = []
    try:
        for outcome in read_windows(VideoSource("a", path), options):
            found.append(outcome.reason if isinstance(outcome, RefusedWindow) else "kept")
    except VideoError as error:
        found.append(error.reason)
    return found


MOVING = pixels(pan(2, COUNT))
STILL = pixels(still(0, COUNT))
NOISY = np.clip(STILL + np.random.default_rng(0).normal(0, 8, STILL.shape), 0, 255).astype(np.uint8)
HALF_BLACK = np.concatenate([MOVING[:5], np.zeros_like(MOVING[:4])])
CUT = np.concatenate([MOVING[:5], pixels(pan(2, 4, seed=1))])
WINDOWS = {"kept": MOVING, "still": STILL, "near-static": NOISY, "black": HALF_BLACK, "hard cut": CUT}


@pytest.mark.parametrize("expected", WINDOWS)
def test_a_window_is_refused_for_what_is_wrong_with_it(expected: str) -> None:
    assert (examine(WINDOWS[expected], FPS, STRICT).reason or "kept") == expected
    switch: dict[str, dict[str, Any]] = {
        "still": {"min_motion": 0.0},
        "near-static": {"min_motion": 0.0},
        "black": {"max_black": 1.0, "cuts": True},
        "hard cut": {"cuts": True},
        "kept": {},
    }
    assert examine(WINDOWS[expected], FPS, replace(STRICT, **switch[expected])).reason is None


def test_windows_are_refused_one_by_one(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", np.concatenate([*WINDOWS.values(), MOVING[:3]]), FPS)
    assert outcomes(tmp_path / "a.mp4", STRICT, windows=9) == list(WINDOWS)
    assert outcomes(tmp_path / "a.mp4", Checks(), windows=9) == ["kept"] * 5
    refused = list(
        read_windows(VideoSource("a", tmp_path / "a.mp4"), ReadOptions(COUNT, FPS, (SIDE, SIDE), 5, checks=STRICT))
    )[1:]
    assert [outcome.start for outcome in refused] == [9 / 8, 18 / 8, 27 / 8, 36 / 8]
    assert isinstance(refused[-1], RefusedWindow) and "cuts 0.62 s after its start" in refused[-1].detail


@pytest.mark.parametrize(
    ("checks", "options", "reason"),
    [
        (Checks(min_fps=12.5), {}, "low frame rate"),
        (Checks(min_fps=12), {}, "kept"),
        (Checks(min_size=97), {}, "too small"),
        (Checks(min_size=96), {}, "kept"),
        (Checks(min_kept=0.51), {"size": (96, 48)}, "too narrow"),
        (Checks(min_kept=0.49), {"size": (96, 48)}, "kept"),
        (Checks(), {"size": (96, 8)}, "too narrow"),
        (Checks(min_kept=0), {"size": (96, 8)}, "kept"),
    ],
)
def test_a_file_is_refused_for_what_it_is(tmp_path: Path, checks: Checks, options: dict[str, Any], reason: str) -> None:
    write_video(tmp_path / "a.mp4", pixels(pan(2, 3 * COUNT)), 12)
    assert outcomes(tmp_path / "a.mp4", checks, **options) == [reason]


def test_the_shorter_side_is_that_of_square_pixels(tmp_path: Path) -> None:
    encode(tmp_path / "a.mp4", MOVING, aspect=Fraction(1, 2))
    assert outcomes(tmp_path / "a.mp4", Checks(min_size=49)) == ["too small"]
    assert outcomes(tmp_path / "a.mp4", Checks(min_size=48)) == ["kept"]


def test_repeated_frames_of_upsampled_footage_are_counted(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", pixels(pan(2, 2 * COUNT)).repeat(2, axis=0), FPS)
    found = read_windows(VideoSource("a", tmp_path / "a.mp4"), ReadOptions(COUNT, FPS, (SIDE, SIDE), 2))
    assert [window.repeated for window in found if isinstance(window, Window)] == [4, 4]


def test_rendered_clips_pass_what_is_asked_by_default(tmp_path: Path) -> None:
    world = World(1)
    checks = recommended(world.fps, 48, 48)
    for index in range(20):
        video = world.clip(index, "train").video
        write_video(tmp_path / "a.mp4", video, world.fps)
        read = read_video(tmp_path / "a.mp4")
        assert examine(read.frames, read.fps, checks).reason is None
    # By a measure fit for footage, whatever moves in the world moves 20 times faster than it must.
    moving = [index for index in range(20) if np.diff(world.clip(index, "train").video.astype(int), axis=0).any()]
    strict = recommended(16, 480, 832)
    faults = {examine(world.clip(index, "train").video, world.fps, strict).reason for index in moving}
    assert faults == {None} and len(moving) > 15


@pytest.mark.parametrize("wrong", [{"min_kept": 1.5}, {"min_fps": -1}, {"max_black": float("nan")}])
def test_limits_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(wrong))):
        Checks(**wrong)
