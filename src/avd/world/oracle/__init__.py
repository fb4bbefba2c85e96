"""The oracle: reads a clip of the built-in world back from its pixels and measures what is right with it."""

from __future__ import annotations

from avd.world.oracle.judge import ClipScores, judge_clip
from avd.world.oracle.promises import ObjectReading
from avd.world.oracle.reading import Reading, read_clip
from avd.world.oracle.summary import OPEN_ATTRIBUTES, diversity, summarise
from avd.world.oracle.tracks import Track

__all__ = [
    "OPEN_ATTRIBUTES",
    "ClipScores",
    "ObjectReading",
    "Reading",
    "Track",
    "diversity",
    "judge_clip",
    "read_clip",
    "summarise",
]
