"""VBench's rule, against the loop of its own that decides it."""

from __future__ import annotations

import numpy as np
import pytest

from avd.measures.dynamic_degree import dynamic_level, frame_interval, least_frames


@pytest.mark.parametrize(
    ("fps", "interval"),
    [(1, 1), (8, 1), (12, 2), (15, 2), (16, 2), (20, 2), (24, 3), (25, 3), (29.97, 4), (30, 4), (60, 8)],
)
def test_pairs_are_an_eighth_of_a_second_apart(fps: float, interval: int) -> None:
    assert frame_interval(fps) == interval  # 12 / 8 and 20 / 8 round to even
    assert least_frames(fps) == 2 * interval + 1


def counted(flows: list[float], side: int) -> bool:
    """`check_move`: pairs above the threshold are counted until they are enough."""
    enough, threshold, count = round(4 * ((len(flows) + 1) / 16.0)), 6.0 * (side / 256.0), 0
    for flow in flows:
        if flow > threshold:
            count += 1
        if count >= enough:
            return True
    return False


@pytest.mark.parametrize("used", [3, 4, 6, 8, 10, 16, 17, 41, 81])
def test_the_level_decides_as_counting_does(used: int) -> None:
    rng = np.random.default_rng(used)
    decisions = set()
    for _ in range(200):
        flows = list(rng.uniform(0, 2, used - 1) * rng.uniform(0.5, 1.5) * 6 * 480 / 256)
        decision = dynamic_level(flows, 480) > 1.0
        assert decision == counted(flows, 480)
        decisions.add(decision)
    assert decisions == {True, False}


def test_a_threshold_is_no_movement_above_it() -> None:
    at = 6 * 256 / 256
    assert dynamic_level([at] * 16, 256) == 1.0
    assert not counted([at] * 16, 256)
    assert dynamic_level([at + 1e-9] * 4 + [0.0] * 12, 256) > 1.0  # 17 frames: round(4.25) pairs are enough
    assert dynamic_level([at + 1e-9] * 3 + [0.0] * 13, 256) == 0.0
