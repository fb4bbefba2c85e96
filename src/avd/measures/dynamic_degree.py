"""VBench's rule for whether a video is dynamic (`vbench/dynamic_degree.py`), given the largest flow of its pairs.

Frames are used at an interval of max(1, round(fps / 8)), so pairs are about an eighth of a second apart. With n frames
used, of H x W pixels, a video is dynamic if

    at least  round(4 n / 16)  of its n - 1 pairs have a largest flow above  6 min(H, W) / 256  pixels.

Beside the yes or no stands the level that decides it, in multiples of that threshold: the largest flow that this many
pairs reach. A video is dynamic if its level is above 1. Rounding is Python's, half to even, as there.
"""

from __future__ import annotations

from collections.abc import Sequence

_PAIRS_PER_SECOND = 8
_THRESHOLD = 6 / 256
"""In shorter sides."""


def frame_interval(fps: float) -> int:
    """Frames between those that are used."""
    return max(1, round(fps / _PAIRS_PER_SECOND))


def least_frames(fps: float) -> int:
    """Frames without which the rule decides nothing: with two that are used it would call every video dynamic."""
    return 2 * frame_interval(fps) + 1


def dynamic_level(largest_flows: Sequence[float], shorter_side: int) -> float:
    """The level of a video, from the largest flow of its pairs (two at least) in pixels."""
    used = len(largest_flows) + 1
    return sorted(largest_flows, reverse=True)[round(4 * used / 16) - 1] / (_THRESHOLD * shorter_side)
