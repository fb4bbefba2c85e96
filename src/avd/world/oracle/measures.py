"""Measures of colour, motion and steadiness of a clip of the built-in world.

docs/oracle.md lists their units, ranges and calibration.
"""

from __future__ import annotations

import numpy as np

from avd.measures import optical_flow
from avd.measures.colour import saturation
from avd.world.oracle.instances import clear_of_others
from avd.world.oracle.reading import Reading
from avd.world.palette import COLOURS

BACKGROUND_SATURATION = 0.0582
"""Mean HSV saturation of rendered backgrounds; the levels draw them alike."""
DYNAMIC_PATH = 1 / 8
"""A clip is dynamic if its main object's path is longer than this, in sides."""


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


def flow_speed(video: np.ndarray) -> float:
    """Mean speed of what is visible in a uint8 video (F, H, W, 3), in sides per frame, by optical flow.

    It shares nothing with the tracks. Frames are halved in size, and windows are averaged by the strength of their
    edges, so objects at rest count. A change of the frame's brightness is taken out first.
    """
    small = optical_flow.shrink(video, 2)
    speed = optical_flow.mean_speed(small, brightness="frame", span=1)
    return float(np.float32(speed)) / min(small.shape[1:3])  # single precision, in which it was calibrated


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


def _second_difference(values: np.ndarray) -> np.ndarray:
    """Halved absolute second differences in time (axis 0), flat, without those that touch a NaN."""
    change = np.abs(values[2:] - 2.0 * values[1:-1] + values[:-2]).ravel() / 2.0
    return change[~np.isnan(change)]
