"""Dense flow and what is read from it, on pictures whose motion is known."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from avd.measures.dense_flow import dense_flow, largest_flow, middle_frame


def picture(height: int = 120, width: int = 160, seed: int = 0) -> np.ndarray:
    """Soft blotches, uint8 (H, W, 3)."""
    rough = np.random.default_rng(seed).integers(0, 256, (height // 10, width // 10, 3), dtype=np.uint8)
    return cv2.resize(rough, (width, height), interpolation=cv2.INTER_CUBIC)


def grey(frame: np.ndarray) -> np.ndarray:
    return np.asarray(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY))


def moved(frame: np.ndarray, right: float, down: float) -> np.ndarray:
    by = np.array([[1, 0, right], [0, 1, down]], np.float32)
    return cv2.warpAffine(frame, by, frame.shape[1::-1], borderMode=cv2.BORDER_REPLICATE)


@pytest.mark.parametrize(("right", "down"), [(2.0, 0.0), (-1.0, 3.0), (0.5, -0.5)])
def test_flow_points_where_the_picture_goes(right: float, down: float) -> None:
    flow = dense_flow(grey(picture()), grey(moved(picture(), right, down)))
    assert np.median(flow, axis=(0, 1)) == pytest.approx([right, down], abs=0.15)


def test_equal_frames_have_no_flow_at_all() -> None:
    assert not dense_flow(grey(picture()), grey(picture())).any()


def test_an_object_of_a_twentieth_of_the_frame_counts_in_full() -> None:
    flow = np.zeros((40, 50, 2), np.float32)
    flow[:10, :10] = (3, 4)  # 100 of 2,000 pixels
    assert largest_flow(flow) == pytest.approx(5.0)
    flow[:10, 5:10] = 0
    assert largest_flow(flow) == pytest.approx(2.5)


def test_the_middle_of_a_moving_picture_is_the_frame_between() -> None:
    a, between, b = (moved(picture(), shift, -shift) for shift in (0, 2, 4))
    middle = middle_frame(a, b, dense_flow(grey(a), grey(b)))
    inner = np.s_[8:-8, 8:-8]

    def error(frame: np.ndarray) -> float:
        return float(cv2.absdiff(frame[inner], between[inner]).mean())

    assert error(middle) < 0.1 * error(cv2.addWeighted(a, 0.5, b, 0.5, 0)) and error(middle) < 1.5


def test_the_middle_without_flow_is_the_mean() -> None:
    a, b = picture(seed=1), picture(seed=2)
    middle = middle_frame(a, b, np.zeros((*a.shape[:2], 2), np.float32))
    assert np.abs(middle - (a.astype(float) + b) / 2).max() <= 0.5
