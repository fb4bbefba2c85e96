"""Sample videos of a run, for a person to look at."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from avd.data import write_video


def write_preview(path: Path, videos: np.ndarray, fps: float) -> None:
    """uint8 clips (B, F, H, W, 3) side by side in one MP4."""
    _, frames, height, _, _ = videos.shape
    write_video(path, videos.transpose(1, 2, 0, 3, 4).reshape(frames, height, -1, 3), fps)
