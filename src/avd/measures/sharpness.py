"""Sharpness of a frame: how much of its detail another blur would take away (Crete, Dolmiere, Ladret, Nicolas 2007).

A sharp picture loses much of the differences between neighbouring pixels when it is blurred, a blurred one little. With
the grey picture I, its mean B over 9 pixels along an axis, and differences D between neighbours along that axis:

    blur  =  1 - sum of max(0, D_I - D_B) / sum of D_I         D_X(i) = |X(i) - X(i - 1)|

The larger of the two axes' blur counts, so that motion blur along one of them does. It is a ratio, so contrast and
brightness do not move it. Noise is detail: grain raises it.
"""

from __future__ import annotations

import cv2
import numpy as np

_TAPS = 9


def sharpness(grey: np.ndarray) -> float:
    """1 - blur of a uint8 grey frame (H, W), in [0, 1]; 0 for a frame without any detail."""
    picture = grey.astype(np.float32)
    return 1.0 - max(_blur(picture), _blur(np.ascontiguousarray(picture.T)))


def _blur(picture: np.ndarray) -> float:
    """Blur of a float32 picture (H, W) along its second axis, in [0, 1]."""
    blurred = cv2.blur(picture, (_TAPS, 1), borderType=cv2.BORDER_REPLICATE)
    before, after = np.abs(np.diff(picture, axis=1)), np.abs(np.diff(blurred, axis=1))
    total = float(before.sum(dtype=np.float64))
    return 1.0 - float(np.maximum(before - after, 0).sum(dtype=np.float64)) / total if total else 1.0
