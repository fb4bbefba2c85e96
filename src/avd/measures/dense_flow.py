"""Dense optical flow between two frames (DIS, Kroeger et al. 2016, as OpenCV has it), and what is read from it.

VBench's dynamic degree and motion smoothness use networks, RAFT and AMT. Here DIS takes their place: no weights, the
same numbers on every machine, 8 ms for a pair of 480 x 832. What is measured with it ends in `_dis`, because the values
are not VBench's.

DIS finds displacements everywhere, but a change of light over an even wall, or film grain on it, is not motion, and it
moves the faint structure there by many pixels. So displacements are damped where a has no edges to be followed:

    F = F_DIS  e / (e + DAMPING)         e: squared slope of a's brightness, mean over 7 x 7 pixels of a thumbnail

**Largest flow** of a pair: the mean of the largest 5 % of the displacements' lengths. A small object that moves counts
as much as a moving camera.

**Middle frame**, from the frames a and b on either side of it and the flow F from a to b:

    m(x) = ( a(x - F(x) / 2) + b(x + F(x) / 2) ) / 2

F belongs to pixels of a and stands in for the flow of the middle. On film, following it there or estimating flow both
ways lowers the error by 0 to 2 %, which is not worth a second flow per pair.
"""

from __future__ import annotations

import cv2
import numpy as np

LEAST_SIDE = 16
"""Pixels of a frame's shorter side, at least: DIS compares patches of 8 x 8, and has none to compare below 12."""
_SCALED_SIDE = 48
"""The finest scale is a quarter of the frame, OpenCV's choice, unless its shorter side had fewer pixels than this."""
_LARGEST_SHARE = 0.05
_THUMBNAIL_SIDE = 48
"""Edges are looked for in thumbnails of about as many pixels on the shorter side: a window is a seventh of it, so that
the even inside of an object of usual size has edges around it."""
_WINDOW = 7
_DAMPING = 8.0
"""In squared levels of 0 to 255 per pixel of the thumbnail. An object's edge has hundreds; grain of 4 levels has 6 in
frames as small as the thumbnail and 0.2 in frames of 240 rows; a smooth gradient has less than 1."""


def dense_flow(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Displacements in pixels, right and down, (H, W, 2) float32, from uint8 grey frame a (H, W) to b."""
    dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    dis.setFinestScale(next(scale for scale in (2, 1, 0) if not scale or min(a.shape) >> scale >= _SCALED_SIDE))
    flow = dis.calc(a, b, None)  # type: ignore[call-overload]  # OpenCV allows it: no flow to start from
    return np.asarray(flow) * _damping(a)[..., None]


def largest_flow(flow: np.ndarray) -> float:
    """Mean of the largest 5 % of the lengths of a flow (H, W, 2), in pixels."""
    lengths = np.hypot(flow[..., 0], flow[..., 1]).ravel()
    count = int(len(lengths) * _LARGEST_SHARE)
    return float(np.partition(lengths, -count)[-count:].mean(dtype=np.float64))


def middle_frame(a: np.ndarray, b: np.ndarray, flow: np.ndarray) -> np.ndarray:
    """The uint8 frame (H, W, 3) halfway between frames a and b, by the flow (H, W, 2) from a to b."""
    height, width = flow.shape[:2]
    places = np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=-1).astype(np.float32)
    half = flow / 2
    return np.asarray(cv2.addWeighted(_sample(a, places - half), 0.5, _sample(b, places + half), 0.5, 0.0))


def _damping(grey: np.ndarray) -> np.ndarray:
    """What displacements of a uint8 grey frame (H, W) are multiplied by, (H, W), in [0, 1]."""
    height, width = grey.shape
    factor = max(1, round(min(height, width) / _THUMBNAIL_SIDE))
    small = cv2.resize(grey, (width // factor, height // factor), interpolation=cv2.INTER_AREA)
    slope_x, slope_y = (cv2.Sobel(small, cv2.CV_32F, *axis, scale=1 / 8) for axis in ((1, 0), (0, 1)))
    energy = cv2.blur(slope_x**2 + slope_y**2, (_WINDOW, _WINDOW))
    return np.asarray(cv2.resize(energy / (energy + _DAMPING), (width, height), interpolation=cv2.INTER_LINEAR))


def _sample(picture: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Values of a picture (H, W, C) at places (H, W, 2), between its pixels linearly and beyond its border as on it."""
    x, y = cv2.split(places)
    return np.asarray(cv2.remap(picture, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE))
