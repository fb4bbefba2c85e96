"""Sharpness: known pictures, falls with blur, and is blind to contrast and brightness."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from avd.measures.sharpness import sharpness


def texture() -> np.ndarray:
    rough = np.random.default_rng(0).integers(60, 160, (24, 32), dtype=np.uint8)
    return rough.repeat(4, axis=0).repeat(4, axis=1)


def test_an_edge_of_one_pixel_loses_eight_ninths_to_a_mean_over_nine() -> None:
    """Before, all of the difference is between two pixels; after, that pair has a ninth of it."""
    edge = np.full((32, 32), 50, np.uint8)
    edge[:, 16:] = 140
    corner = edge // 2 + edge.T // 2
    assert sharpness(corner) == pytest.approx(8 / 9, abs=1e-3)


def test_a_long_ramp_has_nothing_to_lose_and_an_even_frame_no_detail() -> None:
    ramp = np.add.outer(np.arange(100), np.arange(100)).astype(np.uint8)
    assert sharpness(ramp) < 0.08
    assert sharpness(np.full((32, 32), 90, np.uint8)) == 0.0


def test_more_blur_is_less_sharp_and_blur_along_one_axis_counts() -> None:
    picture = texture()
    values = [sharpness(cv2.GaussianBlur(picture, (0, 0), sigma)) for sigma in (0.5, 1.0, 2.0, 4.0)]
    assert sharpness(picture) > values[0] and values == sorted(values, reverse=True)
    assert values[-1] < 0.4 * sharpness(picture)
    assert sharpness(cv2.blur(picture, (9, 1))) < 0.6 * sharpness(picture)


def test_contrast_and_brightness_are_not_sharpness() -> None:
    picture = texture()
    other = (0.5 * picture.astype(float) + 90).round().astype(np.uint8)
    assert sharpness(other) == pytest.approx(sharpness(picture), rel=0.02)
