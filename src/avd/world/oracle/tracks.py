"""Follow regions from frame to frame and say what each followed object is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from avd.world.oracle.colour import chroma, name_colours
from avd.world.oracle.motion import Motion, fit_motion
from avd.world.oracle.segment import Regions
from avd.world.scene import Level

REACH = 0.15
"""Farthest, in sides, that an object may be from where it is expected a frame after it was seen."""
REACH_GROWTH = 0.04
"""What each frame out of sight adds to the reach: the fastest object's step."""
SAME_COLOUR = 0.12
"""Largest chroma distance between sightings of one colour; the palette's hues lie farther apart."""

_COLOUR_WEIGHT = 2.0
_RING_SPREAD = 1.22
_TRIANGLE_THIRD = 0.22
_CORNERS_FOURTH = 0.2


@dataclass(frozen=True)
class Track:
    """One object followed through a clip of F frames. Arrays hold NaN where it is not seen."""

    present: np.ndarray
    """bool, (F,)."""
    centre: np.ndarray
    """x and y in sides, (F, 2)."""
    area: np.ndarray
    """Share of the frame, (F,)."""
    rgb: np.ndarray
    """sRGB in [0, 1], (F, 3)."""
    median_area: float
    median_rgb: np.ndarray
    colour: str
    """Nearest palette name of the median colour."""
    shape: str
    motion: Motion

    @property
    def radius(self) -> float:
        """Radius of the disk of the median area, in sides."""
        return float(np.sqrt(self.median_area / np.pi))


def follow(regions: Regions, frames: int, level: Level) -> tuple[Track, ...]:
    """Link regions into tracks, each frame's to the last by position and colour, and measure every track."""
    chains: list[list[int]] = []
    for frame in range(frames):
        found = np.flatnonzero(regions.frame == frame)
        taken = set()
        for chain, region in _match(regions, chains, found, frame):
            chains[chain].append(region)
            taken.add(region)
        chains += [[int(region)] for region in found if int(region) not in taken]
    return tuple(_measure(regions, np.array(chain), frames, level) for chain in chains)


def _match(regions: Regions, chains: list[list[int]], found: np.ndarray, frame: int) -> list[tuple[int, int]]:
    """Pairs of chain and region; a chain out of sight is taken up again only by its own colour."""
    if not chains or not found.size:
        return []
    last = np.array([chain[-1] for chain in chains])
    expected = np.array([_expect(regions, chain, frame) for chain in chains])
    gap = frame - regions.frame[last] - 1
    away = np.linalg.norm(expected[:, None] - regions.centre[found], axis=-1)
    tint = np.linalg.norm(chroma(regions.rgb[last])[:, None] - chroma(regions.rgb[found]), axis=-1)
    allowed = (away < (REACH + REACH_GROWTH * gap)[:, None]) & ((gap == 0)[:, None] | (tint < SAME_COLOUR))
    cost = np.where(allowed, away + _COLOUR_WEIGHT * tint, 1e3)
    return [(int(c), int(found[r])) for c, r in zip(*linear_sum_assignment(cost), strict=True) if allowed[c, r]]


def _expect(regions: Regions, chain: list[int], frame: int) -> np.ndarray:
    """Position if the object moves on as over its last four sightings."""
    last, before = chain[-1], chain[max(len(chain) - 4, 0)]
    elapsed = regions.frame[last] - regions.frame[before]
    velocity = (regions.centre[last] - regions.centre[before]) / max(elapsed, 1)
    return np.clip(regions.centre[last] + velocity * (frame - regions.frame[last]), 0.0, 1.0)


def _measure(regions: Regions, chain: np.ndarray, frames: int, level: Level) -> Track:
    seen = regions.frame[chain]

    def over_time(values: np.ndarray) -> np.ndarray:
        out = np.full((frames, *values.shape[1:]), np.nan)
        out[seen] = values[chain]
        return out

    present = np.zeros(frames, dtype=bool)
    present[seen] = True
    area, rgb = float(np.median(regions.area[chain])), np.median(regions.rgb[chain], axis=0)
    uncovered = regions.area[chain] >= 0.9 * area  # an object half hidden has another shape
    return Track(
        present,
        over_time(regions.centre),
        over_time(regions.area),
        over_time(regions.rgb),
        area,
        rgb,
        level.colours[int(name_colours(rgb, level.colours))],
        _name_shape(np.median(regions.moments[chain][uncovered], axis=0), level.shapes),
        fit_motion(seen, regions.centre[chain], frames, level.directions),
    )


def _name_shape(moments: np.ndarray, shapes: tuple[str, ...]) -> str:
    """Name a shape by its symmetry: three corners, four corners (upright or on one), none, or a hole."""
    spread, third, fourth = moments
    if third > _TRIANGLE_THIRD:
        return "triangle"
    if "ring" in shapes and spread < _RING_SPREAD:
        return "ring"
    if fourth < -_CORNERS_FOURTH:
        return "box"
    if "diamond" in shapes and fourth > _CORNERS_FOURTH:
        return "diamond"
    return "ball"
