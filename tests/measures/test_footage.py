"""Cuts are found, and what looks like one is none: fades, pans, flashes, motion; black and repeated frames."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest

from avd.measures.footage import black, change, hard_cuts, repeated
from avd.measures.video import thumbnails
from avd.world import World
from helpers.footage import FRAMES, pan, still


def found(frames: np.ndarray, noise: float = 2.0) -> list[int]:
    """Cuts in frames of the unit range, seen by a camera with noise."""
    levels = frames * 255 + np.random.default_rng(9).normal(0, noise, frames.shape)
    return hard_cuts(thumbnails(np.clip(levels, 0, 255).astype(np.uint8)))


@pytest.mark.parametrize("at", [1, 2, 11, FRAMES - 1])
def test_a_cut_is_found_where_it_is(at: int) -> None:
    assert found(np.concatenate([still(0, at), still(1, FRAMES - at)])) == [at]


def test_each_of_several_cuts_is_found() -> None:
    assert found(np.concatenate([still(0, 9), still(1, 8), still(2, 7)])) == [9, 17]


def test_a_cut_in_motion_is_found() -> None:
    assert found(np.concatenate([pan(1, 12), pan(1, 12, seed=1)])) == [12]


def test_a_cut_in_fast_motion_is_found() -> None:
    fast = np.concatenate([pan(8, 12), pan(1, 12, seed=1)])
    changes = [change(a, b) for a, b in pairwise(thumbnails((fast * 255).astype(np.uint8)))]
    assert changes[11] < 2 * np.mean(changes[9:11])  # the motion before it is no small matter
    assert found(fast) == [12]


def test_a_cut_between_repeated_frames_is_found() -> None:
    moving = np.concatenate([pan(1, 6), pan(1, 6, seed=1)]).repeat(2, axis=0)
    assert found(moving, noise=0) == [12]


def fade(count: int) -> np.ndarray:
    share = np.clip((np.arange(FRAMES) - 6) / count, 0, 1)[:, None, None, None]
    return still(0) * (1 - share) + still(1) * share


def flash(length: int) -> np.ndarray:
    frames = still(0)
    frames[10 : 10 + length] = 0.2 * frames[10 : 10 + length] + 0.8
    return frames


def object_passing(speed: int) -> np.ndarray:
    frames = still(0)
    for f in range(FRAMES):
        frames[f, 20:70, max(0, speed * f - 40) : max(0, speed * f)] = (0.9, 0.1, 0.1)
    return frames


def sudden_start(speed: int) -> np.ndarray:
    moving = pan(speed, FRAMES - 8)
    return np.concatenate([np.repeat(moving[:1], 8, axis=0), moving])


NO_CUTS: dict[str, Callable[[], np.ndarray]] = {
    "a still": lambda: still(0),
    "a slow pan": lambda: pan(1),
    "a fast pan": lambda: pan(12),
    "a pan that starts at once": lambda: sudden_start(9),
    "a pan that starts near the end": lambda: sudden_start(9)[: 8 + 3],
    "a slow pan, upsampled": lambda: pan(2, FRAMES // 2).repeat(2, axis=0),
    "a fast pan, upsampled unevenly": lambda: pan(9, FRAMES // 3).repeat([2, 3, 4, 3] * (FRAMES // 12), axis=0),
    "a dissolve": lambda: fade(8),
    "a slow dissolve": lambda: fade(16),
    "a fade to black": lambda: still(0) * np.linspace(1, 0, FRAMES)[:, None, None, None],
    "a flash": lambda: flash(1),
    "a flash of two frames": lambda: flash(2),
    "an object": lambda: object_passing(4),
    "an object that rushes past": lambda: object_passing(40),
}


@pytest.mark.parametrize("name", NO_CUTS)
def test_what_is_no_cut_is_not_taken_for_one(name: str) -> None:
    assert found(NO_CUTS[name](), noise=0 if "upsampled" in name else 2) == []


@pytest.mark.parametrize("level", [0, 1, 2])
def test_the_built_in_world_has_no_cuts_and_no_black(level: int) -> None:
    world = World(level)
    for index in range(40):
        small = thumbnails(world.clip(index, "train").video)
        assert hard_cuts(small) == [] and not black(small).any()


def test_dark_frames_are_not_taken_for_black_ones() -> None:
    frames = np.full((4, 48, 48, 3), 4, np.uint8)  # 0: video black with noise
    frames[1, :4, :4] = 200  # a channel's logo
    frames[2, 20:40, 10:40] = 60  # somebody in the dark
    frames[3] = (0, 0, 40)  # a night sky
    assert black(thumbnails(frames)).tolist() == [True, True, False, False]


def test_repeated_frames_are_counted_through_a_little_noise() -> None:
    twice = pan(2, 6).repeat(2, axis=0) * 255
    noisy = np.clip(twice + np.random.default_rng(0).normal(0, 0.7, twice.shape), 0, 255).astype(np.uint8)
    assert repeated(thumbnails(noisy)).tolist() == [True, False] * 5 + [True]
    assert not repeated(thumbnails((pan(1) * 255).astype(np.uint8))).any()
    assert repeated(thumbnails(noisy[:1])).tolist() == []
