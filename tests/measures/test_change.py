"""Change over time against the definitions, in other words."""

from __future__ import annotations

import numpy as np
import pytest

from avd.measures.change import temporal_flickering, temporal_variance


@pytest.fixture(scope="module")
def noise() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (7, 20, 30, 3), dtype=np.uint8)


def test_flickering_is_one_less_the_mean_change(noise: np.ndarray) -> None:
    change = np.abs(np.diff(noise.astype(float), axis=0)).mean()
    assert temporal_flickering(noise) == pytest.approx((255 - change) / 255, abs=1e-12)


def test_an_alternation_by_a_known_amount() -> None:
    video = np.full((6, 16, 16, 3), 100, np.uint8)
    video[1::2] += 51
    assert temporal_flickering(video) == pytest.approx(0.8)
    assert temporal_variance(video) == pytest.approx(0.1**2)


def test_variance_is_that_of_each_pixel_over_time(noise: np.ndarray) -> None:
    assert temporal_variance(noise) == pytest.approx(np.var(noise / 255, axis=0).mean(), rel=1e-12)


def test_what_does_not_change_is_exactly_steady(noise: np.ndarray) -> None:
    still = np.repeat(noise[:1], 9, axis=0)
    assert (temporal_flickering(still), temporal_variance(still)) == (1.0, 0.0)
