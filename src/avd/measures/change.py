"""How much the pixels of a video change, whatever the cause: motion, flicker, light.

Both are sums over integers, so frames that are all alike have exactly none.
"""

from __future__ import annotations

from itertools import pairwise

import cv2
import numpy as np


def temporal_flickering(video: np.ndarray) -> float:
    """VBench's temporal flickering of a uint8 video (F, H, W, 3) of at least two frames, in [0, 1]; 1 is steady.

        1 - mean over t, pixels and colours of |x(t + 1) - x(t)| / 255

    The formula of `vbench/temporal_flickering.py`. The benchmark applies it to videos that are static by their prompt:
    motion lowers it as flicker does.
    """
    means = [float(cv2.absdiff(a, b).mean(dtype=np.float64)) for a, b in pairwise(video)]
    return 1.0 - float(np.mean(means)) / 255.0


def temporal_variance(video: np.ndarray) -> float:
    """Variance over time of each pixel and colour of a uint8 video (F, H, W, 3), mean over both; unit range squared."""
    sums = np.zeros(video.shape[1:], np.uint32)
    squares = np.zeros(video.shape[1:], np.uint32)  # enough for 66,051 frames
    for frame in video:
        sums += frame
        squares += np.square(frame, dtype=np.uint32)
    frames = len(video)
    mean_square, square_of_mean = squares.mean(dtype=np.float64) / frames, np.square(sums, dtype=np.float64).mean()
    return float(mean_square - square_of_mean / frames**2) / 255.0**2
