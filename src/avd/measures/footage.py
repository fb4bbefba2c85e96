"""What stands between footage and training on it: hard cuts, black and repeated frames, read from thumbnails.

The change between two frames a and b is the mean over the picture of the largest difference of a colour:

    change(a, b) = mean over pixels of  max over R, G, B of |a - b|          in [0, 1]

A hard cut stands between frames t and t + 1, after frames that repeat the one before have been left out, if

    change(t, t + 1) >= `CUT_CHANGE`                                         the picture is another one,
    change(t, t + 1) >= `CUT_RATIO` x mean change of the pairs around it     at once: motion and pans change all pairs,
    change(i, j) >= change(t, t + 1) / 2 for i in t - 2 .. t,                and for good: a flash, or something that
                                             j in t + 1 .. t + 3             rushes past, comes back to what was there.

The ratio is the idea of PySceneDetect's adaptive detector, the last line is ours. A pan that begins at once doubles the
mean of the pairs around it, so the ratio is larger than 2; it is not much larger, as at 16 frames per second what moves
fast changes much between frames. Thumbnails are blurred enough that a pan over fine texture changes little. Slow
dissolves and fades are no hard cuts.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

CUT_CHANGE = 0.06
CUT_RATIO = 2.5
_AROUND = 2
"""Pairs on either side of a cut that it is compared with, and frames that it must outlast, less the nearest."""
BLACK_LEVEL = 0.06
"""A thumbnail's pixel is black if none of its colours is brighter; video black with noise is below 0.03."""
_BLACK_PIXELS = 0.98
"""Share of black pixels that makes a frame black: stars and a channel's logo may remain."""
_REPEATED = 1.5 / 255
"""Largest change of any thumbnail's pixel for which a frame repeats the one before, encoded again."""


def change(a: np.ndarray, b: np.ndarray) -> float:
    """How much two thumbnails (h, w, 3) differ, in [0, 1]."""
    return float(np.abs(a - b).max(axis=-1).mean())


def hard_cuts(thumbnails: np.ndarray) -> list[int]:
    """The frames that a cut comes before, in order, of float thumbnails (F, h, w, 3) in the unit range."""
    distinct = [0, *np.flatnonzero(~repeated(thumbnails)) + 1]
    frames = thumbnails[distinct]
    changes = [change(a, b) for a, b in pairwise(frames)]
    return [int(distinct[t + 1]) for t in range(len(changes)) if _is_cut(frames, changes, t)]


def _is_cut(frames: np.ndarray, changes: list[float], t: int) -> bool:
    own = changes[t]
    sides = [side for side in (changes[max(0, t - _AROUND) : t], changes[t + 1 : t + 1 + _AROUND]) if side]
    around = np.mean([np.mean(side) for side in sides]) if sides else 0.0  # a pan may begin next to the window's end
    if own < CUT_CHANGE or own < CUT_RATIO * around:
        return False
    before, after = frames[max(0, t - _AROUND) : t + 1], frames[t + 1 : t + 2 + _AROUND]
    return all(change(a, b) >= own / 2 for a in before for b in after)


def black(thumbnails: np.ndarray) -> np.ndarray:
    """Which frames are black, (F,), of float thumbnails (F, h, w, 3) in the unit range."""
    dark = (thumbnails <= BLACK_LEVEL).all(axis=-1)
    return np.asarray(dark.mean(axis=(1, 2)) >= _BLACK_PIXELS)


def repeated(thumbnails: np.ndarray) -> np.ndarray:
    """Which frames repeat the one before, (F - 1,), of float thumbnails (F, h, w, 3) in the unit range."""
    return np.asarray(np.abs(np.diff(thumbnails, axis=0)).max(axis=(1, 2, 3), initial=0.0) <= _REPEATED)
