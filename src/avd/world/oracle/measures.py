"""Measures of colour, motion and steadiness of a clip. docs/oracle.md lists their units, ranges and calibration."""

from __future__ import annotations

import numpy as np

from avd.world.oracle.colour import saturation
from avd.world.oracle.instances import clear_of_others
from avd.world.oracle.reading import Reading
from avd.world.palette import COLOURS

BACKGROUND_SATURATION = 0.0582
"""Mean HSV saturation of rendered backgrounds; the levels draw them alike."""
DYNAMIC_PATH = 1 / 8
"""A clip is dynamic if its main object's path is longer than this, in sides."""

_FLOW_CELL = 4
_FLOW_DAMPING = 0.02
"""Added to the diagonal of the structure tensor, so that noise on an even background is not motion."""


def saturation_error(reading: Reading) -> float:
    """Mean HSV saturation above what is due, in [-1, 1]: objects and background count half each.

    An object is compared with its named palette colour (objects weighted by area), the background with the mean of
    rendered ones. By area alone the objects, which show oversaturation best, would hardly count.
    """
    background = float(saturation(reading.background).mean()) - BACKGROUND_SATURATION
    if not reading.objects:
        return background
    areas = [track.median_area for track in reading.objects]
    errors = [
        float(saturation(track.median_rgb) - saturation(np.asarray(COLOURS[track.colour]))) for track in reading.objects
    ]
    return (float(np.average(errors, weights=areas)) + background) / 2


def clipped_share(video: np.ndarray) -> float:
    """Share of pixels of a uint8 video (F, H, W, 3) with a channel at an end of its range, in [0, 1]."""
    return float(((video <= 1) | (video >= 254)).any(axis=-1).mean())


def flow_speed(video: np.ndarray) -> float:
    """Mean speed of what is visible, in sides per frame, by least-squares optical flow (Lucas and Kanade 1981).

    It shares nothing with the tracks: frames are halved in size, every window of 16 pixels a side (8 after halving)
    gets the one displacement that best explains the change between neighbouring frames, and windows are averaged by
    the strength of their edges, so objects at rest count. A change of the whole frame's brightness is
    taken out first.
    """
    frames, height, width, _ = video.shape
    pixels = video[:, : height // 2 * 2, : width // 2 * 2].astype(np.float32)
    small = (pixels[:, ::2, ::2] + pixels[:, 1::2, ::2] + pixels[:, ::2, 1::2] + pixels[:, 1::2, 1::2]) / (4 * 255.0)
    change = np.diff(small, axis=0)
    change -= np.median(change.reshape(frames - 1, -1, 3), axis=1)[:, None, None]
    middle = (small[1:] + small[:-1]) / 2
    slope_y, slope_x = np.gradient(middle, axis=1), np.gradient(middle, axis=2)
    xx, yy, xy = (_windows(a * b) for a, b in ((slope_x, slope_x), (slope_y, slope_y), (slope_x, slope_y)))
    xt, yt = _windows(slope_x * change), _windows(slope_y * change)
    strength = xx + yy
    xx, yy = xx + _FLOW_DAMPING, yy + _FLOW_DAMPING
    determinant = xx * yy - xy * xy
    u, v = (xy * yt - yy * xt) / determinant, (xy * xt - xx * yt) / determinant
    speed = (np.hypot(u, v) * strength).sum() / max(float(strength.sum()), 1e-9)
    return float(speed) / min(small.shape[1:3])


def flicker(reading: Reading) -> float:
    """Change of appearance from frame to frame that comes and goes, on the scale of the unit range; 0 is steady.

    The sum of three means of absolute second differences in time (halved, so that an alternation by a counts 2 a): the
    background's colour, the objects' colour, and the objects' radius in sides. Motion, slow drift of the light and
    pans have none. Frames in which objects overlap are left out.
    """
    colours, radii = [np.empty(0)], [np.empty(0)]
    for track, clear in zip(reading.tracks, clear_of_others(reading), strict=True):
        colours.append(_second_difference(np.where(clear[:, None], track.rgb, np.nan)))
        radii.append(_second_difference(np.where(clear, np.sqrt(track.area / np.pi), np.nan)))
    background = _second_difference(reading.background)
    return float(sum(part.mean() for part in (background, *map(np.concatenate, (colours, radii))) if part.size))


def _windows(product: np.ndarray) -> np.ndarray:
    """Sums over colour and overlapping windows of 2 x 2 cells, of a product (F, H, W, 3)."""
    frames, height, width, _ = product.shape
    rows, columns = height // _FLOW_CELL, width // _FLOW_CELL
    cells = product[:, : rows * _FLOW_CELL, : columns * _FLOW_CELL].sum(axis=-1)
    cells = cells.reshape(frames, rows, _FLOW_CELL, columns, _FLOW_CELL).sum(axis=(2, 4))
    return cells[:, :-1, :-1] + cells[:, 1:, :-1] + cells[:, :-1, 1:] + cells[:, 1:, 1:]


def _second_difference(values: np.ndarray) -> np.ndarray:
    """Halved absolute second differences in time (axis 0), flat, without those that touch a NaN."""
    change = np.abs(values[2:] - 2.0 * values[1:-1] + values[:-2]).ravel() / 2.0
    return change[~np.isnan(change)]
