"""The truth about each token's objects, which only a rendered world can tell: a second target for the teacher.

A token stands for 4 frames of 16 x 16 pixels. Its map says, for each quarter of that square, how much of it objects of
each colour and of each shape cover, and how fast what covers it moves. A network that is to tell this from a noisy clip
must find the objects that its caption promises, each once (the idea of REPA, arXiv 2410.06940, with the truth in place
of another network's features).
"""

from __future__ import annotations

import numpy as np

from avd.world.render import coverage
from avd.world.scene import LEVELS, Scene

_CELLS = 2
"""Cells of a token along each side."""
_PIXELS = 4
"""Points along each side of a cell where coverage is evaluated."""
_FASTEST = 0.04
"""Sides per frame that count as 1."""


def map_channels(level: int) -> int:
    """Values per token."""
    return _CELLS**2 * (len(LEVELS[level].colours) + len(LEVELS[level].shapes) + 2)


def object_maps(scene: Scene, level: int, grid: tuple[int, int, int]) -> np.ndarray:
    """Maps (tokens, channels), float32, in the order of a transformer's tokens: `grid` is frames, rows, columns.

    Coverage is in [0, 1]; velocity is in units of a fast object's, weighted by coverage. A latent frame after the first
    is taken at the middle of its 4 frames.
    """
    frames, rows, columns = grid
    colours, shapes = LEVELS[level].colours, LEVELS[level].shapes
    size = rows * _CELLS * _PIXELS
    out = np.zeros((frames, rows * _CELLS, columns * _CELLS, len(colours) + len(shapes) + 2), np.float32)
    for thing in scene.things:
        kinds = [colours.index(thing.colour), len(colours) + shapes.index(thing.shape)]
        for i in range(frames):
            frame = max(4 * i - 1.5, 0.0)
            cover = coverage(thing, frame, size).reshape(rows * _CELLS, _PIXELS, columns * _CELLS, _PIXELS).mean((1, 3))
            moved = np.subtract(thing.centre(frame + 0.5), thing.centre(frame - 0.5)) / _FASTEST
            out[i, :, :, kinds] += cover
            out[i, :, :, -2:] += cover[..., None] * moved
    cells = out.reshape(frames, rows, _CELLS, columns, _CELLS, -1).transpose(0, 1, 3, 2, 4, 5)
    return np.ascontiguousarray(cells.reshape(frames * rows * columns, -1))
