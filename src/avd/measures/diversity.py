"""How much the clips of several seeds for one prompt differ: "every seed the same video" as a number.

A clip is reduced to a signature of some 4 KB, and signatures are compared pair by pair:

    appearance distance   mean over 4 instants, 8 x 8 cells and colours of |a - b|, in [0, 1]
    motion distance       mean over 4 quarters of the clip and 4 x 4 cells of the length of the difference between their
                          mean displacements, in shorter sides per frame

Cells are means, so noise and encoding hardly count; the motion is that of `avd.measures.video`, so flicker does not.
A set's diversity is the mean over all pairs of seeds. A student that moves less has a smaller motion distance too, so
compare it with the teacher's next to how much both move.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import cv2
import numpy as np

from avd.measures.optical_flow import CELL, flow_field
from avd.measures.video import thumbnails

_INSTANTS = 4
_FRAME_CELLS = 8
_MOTION_CELLS = 4
_DIGITS = 5


@dataclass(frozen=True)
class Signature:
    """What is compared of a clip, as plain numbers for JSON: `Signature(**json.loads(...))` reads it back."""

    appearance: Sequence[int]
    """Levels of 0 to 255, by instant, row, column and colour."""
    motion: Sequence[float]
    """Mean displacements in shorter sides per frame, by quarter, row, column, and right then down."""


def signature(video: np.ndarray) -> Signature:
    """The signature of a uint8 video (F, H, W, 3); without motion if it is one frame or has fewer than 8 rows."""
    instants = np.linspace(0, len(video) - 1, _INSTANTS).round().astype(int)
    cells = [cv2.resize(video[t], (_FRAME_CELLS, _FRAME_CELLS), interpolation=cv2.INTER_AREA) for t in instants]
    return Signature(
        tuple(np.stack(cells).ravel().tolist()),
        tuple(round(value, _DIGITS) for value in _quarters(thumbnails(video)).ravel().tolist()),
    )


def appearance_distance(a: Signature, b: Signature) -> float:
    """Mean difference of the colours of two clips, in [0, 1]."""
    return float(np.abs(np.subtract(a.appearance, b.appearance)).mean()) / 255.0


def motion_distance(a: Signature, b: Signature) -> float:
    """Mean length of the difference of the displacements of two clips, in shorter sides per frame."""
    difference = np.subtract(a.motion, b.motion).reshape(-1, 2)
    return float(np.hypot(difference[:, 0], difference[:, 1]).mean())


@dataclass(frozen=True)
class Diversity:
    """How much the clips of one prompt differ: mean distances over all pairs of seeds."""

    appearance: float
    motion: float


def diversity_of(signatures: Sequence[Signature]) -> Diversity:
    """The diversity of a prompt's clips, two at least."""
    pairs = list(combinations(signatures, 2))
    means = (np.mean([distance(a, b) for a, b in pairs]) for distance in (appearance_distance, motion_distance))
    return Diversity(*map(float, means))


def _quarters(small: np.ndarray) -> np.ndarray:
    """Mean displacements (4, rows, columns, 2) in each quarter of a video (F, h, w, 3), in shorter sides per frame."""
    means = np.zeros((_INSTANTS, _MOTION_CELLS, _MOTION_CELLS, 2), np.float32)
    if len(small) < 2 or min(small.shape[1:3]) < 2 * CELL:
        return means
    field = flow_field(small, "window")
    displacements = np.stack([field.x, field.y], axis=-1) / min(small.shape[1:3])
    pairs = len(displacements)
    for quarter in range(_INSTANTS):
        start = quarter * pairs // _INSTANTS
        mean = displacements[start : max(start + 1, (quarter + 1) * pairs // _INSTANTS)].mean(axis=0)
        means[quarter] = cv2.resize(mean, (_MOTION_CELLS, _MOTION_CELLS), interpolation=cv2.INTER_AREA)
    return means
