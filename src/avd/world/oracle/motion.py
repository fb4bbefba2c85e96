"""Motion of one object: a broken line through its positions.

x and y are each fitted, by least squares, with a continuous line of at most two knots (bounces, starts, stops), and a
knot must earn its place: a knot is added only where it lowers n log(mean squared residual) by `KNOT_COST`. Jitter and
flicker are residuals, not motion.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations

import numpy as np

from avd.world.scene import DIRECTIONS, SPEEDS

STILL_BELOW = (SPEEDS["still"][1] + SPEEDS["slow"][0]) / 2
"""Slower is still, in sides per frame."""
FAST_ABOVE = (SPEEDS["slow"][1] + SPEEDS["fast"][0]) / 2
"""Faster is fast, in sides per frame."""
KNOT_COST = 10.0
POSITION_NOISE = 0.002
"""Residuals below this, in sides, are not explained any further (a tenth of a pixel at 48 pixels)."""

_HALVES = 2
"""Knots lie on half frames."""


@dataclass(frozen=True)
class Motion:
    """A fitted path."""

    centre: np.ndarray
    """Fitted x and y in sides at every half frame, (2 F - 1, 2), extrapolated where nothing was seen."""
    path: float
    """Length of the path between the first and the last sighting, in sides, along bounces."""
    speed: float
    """Sides per frame."""
    direction: str | None
    """Direction of the first movement; None when still."""

    @property
    def pace(self) -> str:
        """Speed class: still, slow or fast."""
        if self.speed < STILL_BELOW:
            return "still"
        return "fast" if self.speed > FAST_ABOVE else "slow"


def fit_motion(seen: np.ndarray, centre: np.ndarray, frames: int, directions: tuple[str, ...]) -> Motion:
    """Fit the positions `centre` (N, 2) in sides at the frames `seen` (N,) of a clip of `frames`."""
    curve = np.stack([_broken_line(tuple(seen.tolist()), axis, frames) for axis in centre.T], axis=1)
    steps = np.diff(curve, axis=0)[_HALVES * int(seen[0]) : _HALVES * int(seen[-1])]
    lengths = np.hypot(steps[:, 0], steps[:, 1])
    path = float(lengths.sum())
    speed = path / max(int(seen[-1] - seen[0]), 1)
    moving = np.flatnonzero(lengths * _HALVES > STILL_BELOW)
    direction = None
    if speed >= STILL_BELOW and moving.size:
        step = steps[moving[0]]
        direction = max(directions, key=lambda name: float(step @ np.asarray(DIRECTIONS[name])))
    return Motion(curve, path, speed, direction)


def _broken_line(seen: tuple[int, ...], position: np.ndarray, frames: int) -> np.ndarray:
    """Fitted position at every half frame."""
    knots, projections, counts = _candidates(seen)
    offset = position - position.mean()
    explained = np.square(projections @ offset).sum(axis=1)
    misfit = np.maximum(offset @ offset - explained, 0.0) / len(seen)
    cost = len(seen) * np.log(misfit + POSITION_NOISE**2) + KNOT_COST * counts
    chosen = knots[int(np.argmin(cost))]
    fit = np.linalg.lstsq(_design(np.asarray(seen, float), chosen), offset, rcond=None)[0]
    grid = np.arange(_HALVES * (frames - 1) + 1) / _HALVES
    return position.mean() + _design(grid, chosen) @ fit


def _design(times: np.ndarray, knots: tuple[float, ...]) -> np.ndarray:
    return np.stack([np.ones_like(times), times, *(np.maximum(times - knot, 0.0) for knot in knots)], axis=1)


@lru_cache(maxsize=256)
def _candidates(seen: tuple[int, ...]) -> tuple[list[tuple[float, ...]], np.ndarray, np.ndarray]:
    """Knots to choose from, the orthonormal bases (M, 4, N) of their broken lines and their numbers of knots (M,)."""
    if len(seen) == 1:
        return [()], np.ones((1, 1, 1)), np.zeros(1)
    places = np.arange(_HALVES * seen[0] + 1, _HALVES * seen[-1]) / _HALVES if len(seen) > 5 else np.empty(0)
    pairs = [(a, b) for a, b in combinations(places, 2) if b - a >= 1.0]
    knots: list[tuple[float, ...]] = [(), *((place,) for place in places), *pairs]
    times = np.asarray(seen, float)
    bases = np.zeros((len(knots), 4, len(seen)))
    for row, choice in enumerate(knots):
        left, scale, _ = np.linalg.svd(_design(times, choice), full_matrices=False)
        basis = left[:, scale > 1e-6 * scale[0]].T
        bases[row, : len(basis)] = basis
    return knots, bases, np.array([len(choice) for choice in knots], float)
