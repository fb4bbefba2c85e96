"""Optical flow by least squares (Lucas and Kanade 1981): the displacement of each window between neighbouring frames.

A window's displacement (x, y) is the one that best explains its change between two frames, with I their mean:

    minimise  sum over pixels and colours of (I_x x + I_y y + I_t)^2  +  DAMPING (x^2 + y^2)

                 | xx + DAMPING   xy           |   | x |       | xt |
    solved by    | xy             yy + DAMPING | . | y |  =  - | yt |     with moments such as xt = sum of I_x I_t

A change of brightness moves nothing, so it is taken out first: that of the frame, or that of each window.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

CELL = 4
"""Windows are of 2 x 2 cells of as many pixels per side, and overlap by half."""
DAMPING = 0.02
"""Added to the diagonal of a window's structure tensor, so that noise on an even background is not motion. For colours
in the unit range."""

Brightness = Literal["frame", "window"]
"""What change of brightness is no motion: the frame's, its median change in each colour, or each window's, its mean
change in each colour. Only the second is blind to lights that flicker in a part of the frame."""


@dataclass(frozen=True)
class FlowField:
    """Displacements of windows between neighbouring frames, (P, rows, columns) each."""

    x: np.ndarray
    """In pixels per frame, to the right."""
    y: np.ndarray
    """In pixels per frame, downwards."""
    strength: np.ndarray
    """Trace of the structure tensor: how much of an edge there is to be followed."""


def shrink(video: np.ndarray, factor: int) -> np.ndarray:
    """A uint8 video (F, H, W, 3) in the unit range, float32, each pixel the mean of `factor` x `factor` of its own.

    Rows and columns that fill no block are cut off.
    """
    frames, height, width, colours = video.shape
    rows, columns = height // factor, width // factor
    cut = video[:, : rows * factor, : columns * factor]
    # One axis after the other, in integers: nine times as fast as a mean over both, and the same to the last bit.
    sums = cut.reshape(frames, rows, factor, columns * factor * colours).sum(axis=2, dtype=np.uint32)
    sums = sums.reshape(frames, rows, columns, factor, colours).sum(axis=3, dtype=np.uint32)
    return sums.astype(np.float32) / np.float32(factor * factor) / np.float32(255.0)


def flow_field(video: np.ndarray, brightness: Brightness) -> FlowField:
    """Displacements in a float32 video (F, H, W, 3) of at least two frames, with colours in the unit range."""
    change, middle = np.diff(video, axis=0), (video[1:] + video[:-1]) / 2
    if brightness == "frame":
        change -= np.median(change.reshape(len(change), -1, 3), axis=1)[:, None, None]
    slope_y, slope_x = np.gradient(middle, axis=1), np.gradient(middle, axis=2)
    moment = _moment if brightness == "frame" else _centred_moment
    xx, yy, xy = moment(slope_x, slope_x), moment(slope_y, slope_y), moment(slope_x, slope_y)
    xt, yt = moment(slope_x, change), moment(slope_y, change)
    strength = xx + yy
    xx, yy = xx + DAMPING, yy + DAMPING
    determinant = xx * yy - xy * xy
    return FlowField((xy * yt - yy * xt) / determinant, (xy * xt - xx * yt) / determinant, strength)


def mean_speed(video: np.ndarray, brightness: Brightness, span: int) -> float:
    """Mean length of the displacements in a float32 video (F, H, W, 3), in pixels per frame, weighted by strength.

    Displacements are averaged as vectors over `span` neighbouring frames, or all if there are fewer, before their
    length is taken: what moves keeps its direction, what shimmers or shakes comes back. 0 for a single frame, and for
    frames smaller than a window.
    """
    if len(video) < 2 or min(video.shape[1:3]) < 2 * CELL:
        return 0.0
    field = flow_field(video, brightness)
    speed = np.hypot(_running_mean(field.x, span), _running_mean(field.y, span))
    weight = _running_mean(field.strength, span)
    return float((speed * weight).sum()) / max(float(weight.sum()), 1e-9)


# The two moments add up colours before windows and after them. In single precision these differ in the last bit, and
# the oracle is calibrated with the one, the references of runs are measured with the other.


def _moment(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Sum over each window of a b, of values (P, H, W, 3): (P, rows, columns)."""
    return _window_sums((a * b).sum(axis=-1))


def _centred_moment(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """`_moment`, less what a change of the window's mean colour explains."""
    pixels = 4 * CELL * CELL
    return (_window_sums(a * b) - _window_sums(a) * _window_sums(b) / pixels).sum(axis=-1)


def _window_sums(values: np.ndarray) -> np.ndarray:
    """Sums over windows, of values (P, H, W, ...): (P, rows, columns, ...)."""
    pairs, height, width, *colours = values.shape
    rows, columns = height // CELL, width // CELL
    cells = values[:, : rows * CELL, : columns * CELL].reshape(pairs, rows, CELL, columns, CELL, *colours)
    cells = cells.sum(axis=(2, 4))
    return cells[:, :-1, :-1] + cells[:, 1:, :-1] + cells[:, :-1, 1:] + cells[:, 1:, 1:]


def _running_mean(values: np.ndarray, span: int) -> np.ndarray:
    """Means over `span` neighbouring frames, or over all if there are fewer, of values (P, rows, columns)."""
    return np.lib.stride_tricks.sliding_window_view(values, min(span, len(values)), axis=0).mean(axis=-1)
