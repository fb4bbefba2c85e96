"""Colours as the oracle compares them: hue and lightness name a colour, saturation does not."""

from __future__ import annotations

import numpy as np

from avd.world.palette import COLOURS


def chroma(rgb: np.ndarray) -> np.ndarray:
    """The part of sRGB colours (..., 3) that is not grey: a change of brightness leaves it alone."""
    return rgb - rgb.mean(axis=-1, keepdims=True)


def name_colours(rgb: np.ndarray, palette: tuple[str, ...]) -> np.ndarray:
    """Index into `palette` of the nearest named colour of each of `rgb`, (..., 3).

    Saturation does not count: a palette colour stands for the ray from the grey of its lightness through it, so an
    oversaturated red is still a red, and what remains is the difference in hue and in lightness.
    """
    named = np.array([COLOURS[name] for name in palette], dtype=rgb.dtype)
    ray = chroma(named)
    ray /= np.linalg.norm(ray, axis=-1, keepdims=True)
    tint = chroma(rgb)
    along = np.maximum(tint @ ray.T, 0.0)
    across = (tint * tint).sum(axis=-1, keepdims=True) - along * along
    darker = rgb.mean(axis=-1, keepdims=True) - named.mean(axis=-1)
    return np.argmin(across + 3.0 * darker * darker, axis=-1)
