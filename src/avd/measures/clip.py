"""All measures of one clip, for any video: what an evaluation reports and a run's monitors can watch.

docs/measures.md has the formula, unit, range and source of each, and what moves it. Each frame is converted to floats
by itself, and each optical flow is computed once for all measures that need it, so memory is the clip and a few frames.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from avd.measures.change import temporal_flickering, temporal_variance
from avd.measures.colour import clipped_share, colourfulness, contrast, saturated_share, saturation
from avd.measures.dense_flow import LEAST_SIDE, dense_flow, largest_flow, middle_frame
from avd.measures.dynamic_degree import dynamic_level, frame_interval, least_frames
from avd.measures.sharpness import sharpness
from avd.measures.video import motion
from avd.types import UserError


@dataclass(frozen=True)
class ClipMeasures:
    """What is measured of one clip."""

    saturation: float
    """Mean HSV saturation, in [0, 1]."""
    saturated_share: float
    """Share of pixels whose saturation is above 0.95."""
    clipped_share: float
    """Share of pixels with a colour at an end of its range."""
    colourfulness: float
    """By Hasler and Süsstrunk, in levels of 0 to 255."""
    contrast: float
    """Standard deviation of the brightness within a frame, in shares of the full range."""
    sharpness: float
    """By Crete et al., in [0, 1]; blur lowers it."""
    temporal_flickering: float
    """VBench's, in [0, 1]; 1 is steady."""
    temporal_variance: float
    """Variance of a pixel over time, in the unit range squared."""
    motion: float
    """Mean speed of the picture's edges, in shorter sides per frame."""
    motion_smoothness_dis: float
    """How well every second frame is predicted from its neighbours, in [0, 1]; 1 is perfectly."""
    dynamic_degree_dis: float
    """1 if the clip is dynamic by VBench's rule, else 0."""
    dynamic_level_dis: float
    """The flow that decides it, in multiples of the rule's threshold."""


def clip_refusal(frames: int, height: int, width: int, fps: float) -> str | None:
    """Why a clip of this shape cannot be measured, or None."""
    if not (np.isfinite(fps) and fps > 0):
        return f"{fps:g} frames per second: a clip needs a rate above 0"
    if frames < least_frames(fps):
        return f"{frames} frames at {fps:g} fps: dynamic degree needs at least {least_frames(fps)}"
    if min(height, width) < LEAST_SIDE:
        return f"frames of {height} x {width} pixels: optical flow needs at least {LEAST_SIDE} per side"
    return None


def measure_clip(frames: np.ndarray, fps: float) -> ClipMeasures:
    """The measures of uint8 frames (F, H, W, 3). Raises `UserError` with `clip_refusal`'s reason."""
    assert frames.dtype == np.uint8 and frames.ndim == 4 and frames.shape[-1] == 3, (frames.dtype, frames.shape)
    count, height, width, _ = frames.shape
    refusal = clip_refusal(count, height, width, fps)
    if refusal is not None:
        raise UserError(refusal)
    stills = [_still_measures(frame) for frame in frames]
    return ClipMeasures(
        **{name: float(np.mean([still[name] for still in stills])) for name in stills[0]},
        temporal_flickering=temporal_flickering(frames),
        temporal_variance=temporal_variance(frames),
        motion=motion(frames),
        **_flow_measures(frames, fps),
    )


def _still_measures(frame: np.ndarray) -> dict[str, float]:
    """The measures of a uint8 frame (H, W, 3) by itself."""
    unit = frame.astype(np.float32) / 255.0
    saturations = saturation(unit)
    return {
        "saturation": float(saturations.mean()),
        "saturated_share": saturated_share(saturations),
        "clipped_share": clipped_share(frame),
        "colourfulness": colourfulness(frame),
        "contrast": contrast(unit),
        "sharpness": sharpness(_grey(frame)),
    }


def _flow_measures(frames: np.ndarray, fps: float) -> dict[str, float]:
    """Dynamic degree, from frames `frame_interval` apart, and motion smoothness, from every second frame.

    At 16 fps both need the flow of the same pairs.
    """
    apart = _pairs(len(frames), frame_interval(fps))
    around = _pairs(len(frames), 2)
    largest, errors = [], []
    for first, last in sorted(apart | around):
        a, b = frames[first], frames[last]
        flow = dense_flow(_grey(a), _grey(b))
        if (first, last) in apart:
            largest.append(largest_flow(flow))
        if (first, last) in around:
            difference = cv2.absdiff(middle_frame(a, b, flow), frames[first + 1])
            errors.append(float(difference.mean(dtype=np.float64)))
    level = dynamic_level(largest, min(frames.shape[1:3]))
    return {
        "motion_smoothness_dis": 1.0 - float(np.mean(errors)) / 255.0,
        "dynamic_degree_dis": float(level > 1.0),
        "dynamic_level_dis": level,
    }


def _pairs(frames: int, interval: int) -> set[tuple[int, int]]:
    """Neighbours among every `interval`-th frame."""
    return {(first, first + interval) for first in range(0, frames - interval, interval)}


def _grey(frame: np.ndarray) -> np.ndarray:
    return np.asarray(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY))
