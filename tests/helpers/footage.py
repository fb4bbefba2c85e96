"""Footage whose content is known frame by frame."""

from __future__ import annotations

import numpy as np

FRAMES, SIDE = 24, 96


def scene(seed: int, width: int = SIDE) -> np.ndarray:
    """A picture (96, width, 3) of soft blotches in the unit range."""
    rough = np.random.default_rng(seed).uniform(0, 1, (8, width // 12, 3))
    return rough.repeat(12, axis=0).repeat(12, axis=1)


def still(seed: int, count: int = FRAMES) -> np.ndarray:
    return np.repeat(scene(seed)[None], count, axis=0)


def pan(speed: int, count: int = FRAMES, seed: int = 0) -> np.ndarray:
    wide = scene(seed, SIDE + 12 * (speed * count // 12 + 1))
    return np.stack([wide[:, speed * f : speed * f + SIDE] for f in range(count)])


def shades(count: int, height: int = 16, width: int = 16) -> np.ndarray:
    """Frames of flat grey, each 8 levels brighter than the one before, so that a frame is known by its mean."""
    levels = np.arange(count, dtype=np.uint8) * 8 + 16
    return np.broadcast_to(levels[:, None, None, None], (count, height, width, 3)).copy()


def numbers(frames: np.ndarray) -> list[int]:
    """Which frame of `shades` each frame shows."""
    return [round((float(frame.mean()) - 16) / 8) for frame in frames]
