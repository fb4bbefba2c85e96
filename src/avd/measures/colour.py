"""Colour, contrast and clipping of pixels."""

from __future__ import annotations

import numpy as np

_SATURATED = 0.95


def saturation(rgb: np.ndarray) -> np.ndarray:
    """HSV saturation, in [0, 1], of sRGB colours (..., 3) in [0, 1]; 0 for black."""
    red, green, blue = rgb[..., 0], rgb[..., 1], rgb[..., 2]  # six times as fast as a reduction over three values
    high = np.maximum(np.maximum(red, green), blue)
    return (high - np.minimum(np.minimum(red, green), blue)) / np.maximum(high, 1e-6)


def contrast(frame: np.ndarray) -> float:
    """Standard deviation of the brightness within a frame (H, W, 3), in the frame's units."""
    return float(frame.mean(axis=-1).std())


def clipped_share(video: np.ndarray) -> float:
    """Share of pixels of a uint8 frame or video (..., H, W, 3) with a channel at an end of its range, in [0, 1]."""
    return float(((video <= 1) | (video >= 254)).any(axis=-1).mean())


def saturated_share(saturations: np.ndarray) -> float:
    """Share of `saturation` values, (...), above 0.95, in [0, 1]: colours with next to no grey left in them."""
    return float((saturations > _SATURATED).mean())


def colourfulness(frame: np.ndarray) -> float:
    """Colourfulness of a uint8 frame (H, W, 3) by Hasler and Süsstrunk (2003), in levels of 0 to 255; 0 for grey.

    With the opponent colours rg = R - G and yb = (R + G) / 2 - B:

        M  =  sqrt(var rg + var yb)  +  0.3 sqrt(mean(rg)^2 + mean(yb)^2)

    In their scale 15 is slightly colourful, 45 averagely, 82 highly, 109 extremely.
    """
    red, green, blue = (frame[..., colour].astype(np.float32) for colour in range(3))
    rg, yb = red - green, (red + green) / 2 - blue
    spread = np.hypot(rg.std(dtype=np.float64), yb.std(dtype=np.float64))
    return float(spread + 0.3 * np.hypot(rg.mean(dtype=np.float64), yb.mean(dtype=np.float64)))
