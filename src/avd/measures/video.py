"""How a video looks and moves, in three numbers read from its pixels. No oracle is needed: the videos are anybody's.

Motion is a displacement. Energies of change (variance over frames, differences of frames) grow with flicker and with
contrast, so they would miss the very faults that are looked for: a student that buys variance with flicker, and one
whose colours burn. Here motion is optical flow in shrunken frames, with two precautions: a change of brightness or
colour of each window is taken out, so flicker moves nothing, and displacements are averaged as vectors over `_SPAN`
frames before their length is taken, so what shimmers or shakes comes back.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from avd.measures.colour import contrast, saturation
from avd.measures.optical_flow import mean_speed, shrink

_SIDE = 24
"""Frames are shrunk by an integer factor until their shorter side has about as many pixels: 480 pixels by 20, 48 by 2.
What moves a fifteenth of the side between frames, the fastest that is common, moves 1.6 pixels there."""
_SPAN = 4


@dataclass(frozen=True)
class PixelStats:
    """Saturation, contrast and motion of one video, or their means over some."""

    saturation: float
    """Mean HSV saturation, in [0, 1]."""
    contrast: float
    """Standard deviation of the brightness within a frame, mean over frames, in shares of the full range."""
    motion: float
    """Mean speed of the picture's edges, in shorter sides per frame."""


def measure_pixels(video: np.ndarray) -> PixelStats:
    """The statistics of a uint8 video (F, H, W, 3)."""
    saturations, contrasts = [], []
    for frame in video:  # one at a time in floats: a video may be large
        unit = frame.astype(np.float32) / 255.0
        saturations.append(float(saturation(unit).mean()))
        contrasts.append(contrast(unit))
    return PixelStats(
        float(np.mean(saturations)),
        float(np.array(contrasts, np.float32).mean()),
        motion(video),
    )


def thumbnails(video: np.ndarray) -> np.ndarray:
    """A uint8 video (F, H, W, 3) shrunk as motion is measured, float32 (F, h, w, 3) in the unit range."""
    return shrink(video, max(1, round(min(video.shape[1:3]) / _SIDE)))


def motion(video: np.ndarray) -> float:
    """`PixelStats.motion` of a uint8 video (F, H, W, 3); 0 for a single frame."""
    return motion_of_thumbnails(thumbnails(video))


def motion_of_thumbnails(small: np.ndarray) -> float:
    """`motion`, of `thumbnails`."""
    return mean_speed(small, brightness="window", span=_SPAN) / min(small.shape[1:3])
