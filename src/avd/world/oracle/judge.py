"""Judge one clip: all measures at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from avd.measures.colour import clipped_share
from avd.world.grammar import Promises
from avd.world.oracle.instances import Fault, find_faults
from avd.world.oracle.measures import DYNAMIC_PATH, flicker, flow_speed, saturation_error
from avd.world.oracle.promises import ObjectReading, check_promises
from avd.world.oracle.reading import Reading, read_clip


@dataclass(frozen=True)
class ClipScores:
    """The oracle's judgement of a clip. docs/oracle.md says how each metric is made and how far it can be trusted."""

    saturation_signed: float
    """HSV saturation above (or, negative, below) what is due, in [-1, 1]."""
    saturation_error: float
    """Its absolute value."""
    clipped_share: float
    """Share of pixels with a channel at an end of its range."""
    speed: float
    """Speed of the main object, in sides per frame; 0 without objects."""
    dynamic: bool
    """The main object's path over the clip is longer than an eighth of a side."""
    flow: float
    """Mean optical flow of what is visible, in sides per frame."""
    faults: tuple[Fault, ...]
    """What is wrong with the objects' persistence."""
    intact_share: float
    """Share of the frames without a fault, in [0, 1]."""
    flicker: float
    """Unexplained change from frame to frame, 0 when steady."""
    caption_accuracy: float | None
    """Share of the caption's promises that are kept; None where it promises nothing."""
    kept: dict[str, tuple[int, int]]
    """Promises kept and promises made, by attribute."""
    objects: tuple[ObjectReading, ...]
    match: tuple[int | None, ...]
    """For each thing the caption names, the index in `objects` of what stands for it."""

    @property
    def instance_preserved(self) -> bool:
        """Every object is there in every frame and remains itself."""
        return not self.faults


def judge_clip(video: np.ndarray, promises: Promises | None, level: int) -> ClipScores:
    """Judge `video`, uint8 sRGB (F, H, W, 3), made for a caption with `promises` of world `level`.

    Raises ValueError as `read_clip` does.
    """
    promises = promises or Promises(None, ())
    reading = read_clip(video, level)
    objects = describe_objects(reading)
    promised = check_promises(promises, objects)
    main = reading.main_object
    error = saturation_error(reading)
    faults = find_faults(reading, len(promises.things))
    return ClipScores(
        saturation_signed=error,
        saturation_error=abs(error),
        clipped_share=clipped_share(video),
        speed=main.motion.speed if main else 0.0,
        dynamic=main is not None and main.motion.path > DYNAMIC_PATH,
        flow=flow_speed(video),
        faults=tuple(faults),
        intact_share=float(1.0 - np.any([*faults.values(), np.zeros(reading.frames, dtype=bool)], axis=0).mean()),
        flicker=flicker(reading),
        caption_accuracy=promised.accuracy,
        kept=promised.kept,
        objects=objects,
        match=promised.match,
    )


def describe_objects(reading: Reading) -> tuple[ObjectReading, ...]:
    """The objects of a reading in the caption's terms."""
    return tuple(
        ObjectReading(track.colour, track.shape, track.motion.pace, track.motion.direction, track.motion.speed)
        for track in reading.objects
    )
