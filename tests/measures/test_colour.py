"""Saturation, contrast and clipping against their definitions."""

from __future__ import annotations

import colorsys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from avd.measures.colour import clipped_share, contrast, saturation

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
