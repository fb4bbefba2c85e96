"""Saturation, colourfulness, contrast and clipping against their definitions."""

from __future__ import annotations

import colorsys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from avd.measures.colour import clipped_share, colourfulness, contrast, saturated_share, saturation

CHANNEL = st.floats(0.0, 1.0, width=32)


@given(red=CHANNEL, green=CHANNEL, blue=CHANNEL)
def test_saturation_is_that_of_hsv(red: float, green: float, blue: float) -> None:
    if max(red, green, blue) < 1e-5:  # less than any 8-bit or 16-bit level: taken for black
        return
    assert saturation(np.array([red, green, blue])) == pytest.approx(colorsys.rgb_to_hsv(red, green, blue)[1])


def test_saturation_of_black_and_grey_is_0_and_of_pure_colours_1() -> None:
    colours = np.array([[0.0, 0.0, 0.0], [0.4, 0.4, 0.4], [1.0, 1.0, 1.0], [0.0, 0.3, 0.0], [1.0, 0.0, 0.5]])
    assert saturation(colours).tolist() == [0.0, 0.0, 0.0, 1.0, 1.0]


def test_contrast_is_the_deviation_of_brightness_not_of_colour() -> None:
    frame = np.zeros((2, 2, 3))
    frame[0] = [0.9, 0.0, 0.0]
    frame[1] = [0.3, 0.3, 0.3]
    assert contrast(frame) == pytest.approx(0.0)
    frame[1] = 0.5
    assert contrast(frame) == pytest.approx(0.1)


def test_a_pixel_is_clipped_if_one_channel_is_at_an_end() -> None:
    video = np.full((1, 2, 3, 3), 128, np.uint8)
    assert clipped_share(video) == 0.0
    for level, channel in ((1, 0), (254, 2)):
        video[0, 0, channel, channel] = level
    video[0, 1, 0], video[0, 1, 1] = 2, 253
    assert clipped_share(video) == pytest.approx(2 / 6)


def test_a_colour_counts_as_saturated_above_95_percent() -> None:
    assert saturated_share(np.array([[0.0, 0.95, 0.96], [1.0, 0.5, 0.94]])) == pytest.approx(2 / 6)


def test_colourfulness_is_0_for_grey_and_known_for_an_even_colour() -> None:
    grey = np.random.default_rng(0).integers(0, 256, (8, 9, 1), dtype=np.uint8).repeat(3, axis=-1)
    assert colourfulness(grey) == 0.0
    even = np.full((8, 9, 3), (200, 100, 50), np.uint8)  # rg = 100, yb = 100
    assert colourfulness(even) == pytest.approx(0.3 * 2**0.5 * 100)


def test_colourfulness_against_its_formula() -> None:
    frame = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    r, g, b = np.moveaxis(frame.astype(float), -1, 0)
    rg, yb = r - g, 0.5 * (r + g) - b
    expected = np.sqrt(rg.var() + yb.var()) + 0.3 * np.sqrt(rg.mean() ** 2 + yb.mean() ** 2)
    assert colourfulness(frame) == pytest.approx(expected)
