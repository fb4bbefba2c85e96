"""Colour, contrast and clipping of pixels."""

from __future__ import annotations

import numpy as np


def saturation(rgb: np.ndarray) -> np.ndarray:
    """HSV saturation, in [0, 1], of sRGB colours (..., 3) in [0, 1]; 0 for black."""
    high = rgb.max(axis=-1)
    return (high - rgb.min(axis=-1)) / np.maximum(high, 1e-6)


def contrast(frame: np.ndarray) -> float:
    """Standard deviation of the brightness within a frame (H, W, 3), in the frame's units."""
    return float(frame.mean(axis=-1).std())


def clipped_share(video: np.ndarray) -> float:
    """Share of pixels of a uint8 video (F, H, W, 3) with a channel at an end of its range, in [0, 1]."""
    return float(((video <= 1) | (video >= 254)).any(axis=-1).mean())
