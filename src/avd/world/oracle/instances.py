"""Instance preservation: is every object there in every frame, and is it the same object throughout?

On level 0 objects never touch, so nothing excuses an absence or an overlap. On levels with crossings an object may be
out of sight, or partly so, while the path fitted to its sightings leads across another object's: it must be seen again
where that path comes out. What fused for good and travels on as one therefore shows as vanished.
"""

from __future__ import annotations

from itertools import combinations, permutations
from typing import Literal

import numpy as np

from avd.world.oracle.colour import chroma
from avd.world.oracle.reading import Reading
from avd.world.oracle.tracks import SAME_COLOUR, Track
from avd.world.scene import LEVELS

Fault = Literal["empty", "missing", "vanished", "appeared", "duplicated", "fused", "recoloured", "resized"]

AREA_RANGE = (0.55, 1.8)
"""An object whose area leaves this range, relative to its median where it is not covered, is resized."""
LARGEST_AREA = 0.15
"""Share of the frame above which nothing is an object of this world: twice the largest."""
HIDDEN_REACH = 1.1
"""Objects closer than this, relative to the radii of disks of like area, may hide one another."""
CROSSING_REACH = 1.55
"""Objects closer than this, relative to the radii of disks of like area, may overlap; a triangle's corner is at 1.5."""
FUSED_REACH = 1.1
"""Objects closer than this, relative to the same radii, have fused. Rendered ones keep 1.28 where they never touch."""


def find_faults(reading: Reading, named: int) -> dict[Fault, np.ndarray]:
    """What is wrong with the clip's objects, and in which frames, bool (F,); empty if all are preserved.

    `named` is the number of objects the caption names: the least there must be.
    """
    always = np.ones(reading.frames, dtype=bool)
    if not reading.tracks:
        return {"empty": always}
    faults: dict[Fault, np.ndarray] = {}
    if len(reading.tracks) < named:
        faults["missing"] = always
    if not LEVELS[reading.level].crossings:
        faults["fused"] = _fused(reading)
    rows = zip(reading.tracks, clear_of_others(reading), _crossed(reading, HIDDEN_REACH), strict=True)
    for track, clear, hidden in rows:
        for fault, frames in _faults_of(reading, track, clear, hidden).items():
            faults[fault] = faults.get(fault, False) | frames
    return {fault: frames for fault, frames in sorted(faults.items()) if frames.any()}


def _faults_of(reading: Reading, track: Track, clear: np.ndarray, hidden: np.ndarray) -> dict[Fault, np.ndarray]:
    """The frames of each fault of one track, given where it is clear of others and where they may hide it."""
    faults: dict[Fault, np.ndarray] = {}
    if (track.present | hidden)[: np.argmax(track.present) + 1].all():
        faults["vanished"] = ~track.present & ~hidden
    else:  # what should not be there need not stay
        faults["duplicated" if _has_twin(reading, track) else "appeared"] = track.present
    away = np.linalg.norm(chroma(track.rgb) - chroma(track.median_rgb), axis=-1)
    faults["recoloured"] = clear & (away > SAME_COLOUR)
    typical = np.median(track.area[clear]) if clear.any() else track.median_area
    shrunk, grown = track.area < AREA_RANGE[0] * typical, track.area > AREA_RANGE[1] * typical
    faults["resized"] = clear & (shrunk | grown) | (track.area > LARGEST_AREA)
    return faults


def clear_of_others(reading: Reading) -> np.ndarray:
    """Whether each track is seen, and not covered, in each frame, bool (tracks, F)."""
    present = np.array([track.present for track in reading.tracks], dtype=bool).reshape(-1, reading.frames)
    return present & ~_crossed(reading, CROSSING_REACH)


def _crossed(reading: Reading, reach: float) -> np.ndarray:
    """Whether each track's path comes within `reach` of another's in each frame, bool (tracks, F); never on level 0."""
    crossed = np.zeros((len(reading.tracks), reading.frames), dtype=bool)
    if LEVELS[reading.level].crossings:
        for i, j in permutations(range(len(reading.tracks)), 2):
            track, other = reading.tracks[i], reading.tracks[j]
            gap = np.linalg.norm(track.motion.centre[::2] - other.motion.centre[::2], axis=-1)
            crossed[i] |= gap < reach * (track.radius + other.radius)
    return crossed


def _fused(reading: Reading) -> np.ndarray:
    """Frames in which two objects come closer than rendered ones ever do."""
    fused = np.zeros(reading.frames, dtype=bool)
    for a, b in combinations(reading.tracks, 2):
        fused |= np.linalg.norm(a.centre - b.centre, axis=-1) < FUSED_REACH * (a.radius + b.radius)
    return fused


def _has_twin(reading: Reading, track: Track) -> bool:
    return any(
        other is not track
        and (other.present & track.present).any()
        and np.linalg.norm(chroma(other.median_rgb) - chroma(track.median_rgb)) < SAME_COLOUR
        for other in reading.tracks
    )
