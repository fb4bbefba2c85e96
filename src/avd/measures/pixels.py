"""How a video looks and moves, in three metrics read from its pixels. No oracle is needed: the videos are anybody's.

Motion is a displacement. Energies of change (variance over frames, differences of frames) grow with flicker and with
contrast, so they would miss the very faults that are looked for: a student that buys variance with flicker, and one
whose colours burn. Here every window of a shrunken frame gets the one displacement that best explains its change to the
next frame (least squares, Lucas and Kanade 1981), with two precautions:

- A change of brightness or colour of the whole window is fitted along and thrown away, so flicker moves nothing.
- Displacements are averaged as vectors over `_SPAN` frames before their length is taken: what moves goes on in its
  direction, what flickers, shimmers or shakes comes back.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_SIDE = 24
"""Frames are shrunk by a whole factor until their shorter side has about as many pixels: 480 by 20, wan-mini's 48 by
2. What moves a fifteenth of the side between frames, the fastest that is common, moves 1.6 pixels there."""
_CELL = 4
"""Windows are of 2 x 2 cells and overlap by half."""
_SPAN = 4
_DAMPING = 0.02
"""Added to the diagonal of a window's structure tensor, so that noise on an even background is not motion."""


@dataclass(frozen=True)
class PixelStats:
    """Of one video."""

    saturation: float
    """Mean HSV saturation, in [0, 1]."""
    contrast: float
    """Standard deviation of the brightness within a frame, mean over frames, in shares of the full range."""
    motion: float
    """Mean speed of the picture's edges, in shorter sides per frame."""


def measure_pixels(video: np.ndarray) -> PixelStats:
    """The metrics of a uint8 video (F, H, W, 3)."""
    frames = [frame.astype(np.float32) / 255.0 for frame in video]  # one at a time: a video may be large
    return PixelStats(
        float(np.mean([_saturation(frame) for frame in frames])),
        float(np.mean([frame.mean(axis=-1).std() for frame in frames])),
        motion(video),
    )


def motion(video: np.ndarray) -> float:
    """`PixelStats.motion` of a uint8 video (F, H, W, 3); 0 for a single frame."""
    small = _shrink(video)
    side = min(small.shape[1:3])
    if len(small) < 2 or side < 2 * _CELL:
        return 0.0
    change, middle = np.diff(small, axis=0), (small[1:] + small[:-1]) / 2
    slope_y, slope_x = np.gradient(middle, axis=1), np.gradient(middle, axis=2)
    xx, yy, xy = _moment(slope_x, slope_x), _moment(slope_y, slope_y), _moment(slope_x, slope_y)
    xt, yt = _moment(slope_x, change), _moment(slope_y, change)
    strength = xx + yy
    xx, yy = xx + _DAMPING, yy + _DAMPING
    determinant = xx * yy - xy * xy
    along_x, along_y = (xy * yt - yy * xt) / determinant, (xy * xt - xx * yt) / determinant
    speed = np.hypot(_steady(along_x), _steady(along_y))
    weight = _steady(strength)
    return float((speed * weight).sum()) / max(float(weight.sum()), 1e-9) / side


def _saturation(frame: np.ndarray) -> float:
    high = frame.max(axis=-1)
    return float(((high - frame.min(axis=-1)) / np.maximum(high, 1e-6)).mean())


def _shrink(video: np.ndarray) -> np.ndarray:
    """The video (F, H, W, 3) in the unit range, each pixel the mean of a block."""
    frames, height, width, colours = video.shape
    factor = max(1, round(min(height, width) / _SIDE))
    rows, columns = height // factor, width // factor
    cut = video[:, : rows * factor, : columns * factor].reshape(frames, rows, factor, columns, factor, colours)
    return cut.mean(axis=(2, 4), dtype=np.float32) / np.float32(255.0)


def _moment(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Sum over each window (F, rows, columns) of a b, less what a change of the window's mean colour explains."""
    pixels = 4 * _CELL * _CELL
    return (_windows(a * b) - _windows(a) * _windows(b) / pixels).sum(axis=-1)


def _windows(values: np.ndarray) -> np.ndarray:
    """Sums over windows, of values (F, H, W, 3): shape (F, rows, columns, 3)."""
    frames, height, width, colours = values.shape
    rows, columns = height // _CELL, width // _CELL
    cells = values[:, : rows * _CELL, : columns * _CELL].reshape(frames, rows, _CELL, columns, _CELL, colours)
    cells = cells.sum(axis=(2, 4))
    return cells[:, :-1, :-1] + cells[:, 1:, :-1] + cells[:, :-1, 1:] + cells[:, 1:, 1:]


def _steady(values: np.ndarray) -> np.ndarray:
    """Running mean over `_SPAN` neighbouring frames, or over all if there are fewer (F, rows, columns)."""
    return np.lib.stride_tricks.sliding_window_view(values, min(_SPAN, len(values)), axis=0).mean(axis=-1)
