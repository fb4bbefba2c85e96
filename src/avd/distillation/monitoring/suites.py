"""What monitors measure of a clip, and what the clips' records come to: one suite per value of `monitors.suite`.

`pixels` is saturation, contrast and motion. `native` is every measure of `avd.measures.clip` and, where prompts have
several seeds, how much the videos of one prompt differ (`avd.measures.diversity`). What both measure is the same.

A record is a clip's values, and what it is compared with others by, as JSON: it travels between ranks and waits in the
run's folder. Diversity is the mean distance of two videos of one prompt, over all pairs of its seeds and all prompts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Protocol

import numpy as np

from avd.config import MonitorsRecipe
from avd.measures.clip import ClipMeasures, measure_clip
from avd.measures.diversity import Signature, diversity_of, signature
from avd.measures.video import PixelStats, measure_pixels

MonitorRecord = dict[str, Any]
"""JSON-able: a value per measure, and for `native` the clip's signature."""
Groups = Sequence[Sequence[int]]
"""Positions of the videos of one prompt, for each prompt that has several."""


class MonitorSuite(Protocol):
    """Measures clips and sums them up."""

    name: ClassVar[str]
    """As `monitors.suite` names it."""
    scored: ClassVar[tuple[str, ...]]
    """Ratios that the score is made of: `<measure>_to_real` or `<measure>_to_teacher`."""

    @property
    def measures(self) -> tuple[str, ...]:
        """What every record has a value of."""
        ...

    def measure(self, video: np.ndarray) -> MonitorRecord:
        """The record of a uint8 video (F, H, W, 3)."""
        ...

    def read(self, line: Mapping[str, Any]) -> MonitorRecord:
        """The record within a line of JSON. Raises KeyError or TypeError for what is none."""
        ...

    def summarise(self, records: Sequence[MonitorRecord], groups: Groups) -> dict[str, float]:
        """Means of the measures over the videos of the first seeds, and diversity if there are `groups`."""
        ...

    def ratio(self, measure: str, value: float, reference: float) -> float:
        """How large a value is beside a reference's, 1 if they are equal; NaN where that means nothing."""
        ...


def suite_of(recipe: MonitorsRecipe, fps: float) -> MonitorSuite:
    """The suite that a recipe names, for videos of `fps` frames per second."""
    return NativeMonitorSuite(fps) if recipe.suite == "native" else PixelMonitorSuite()


@dataclass(frozen=True)
class PixelMonitorSuite:
    """See `MonitorSuite`: saturation, contrast and motion."""

    name: ClassVar[str] = "pixels"
    scored: ClassVar[tuple[str, ...]] = ("saturation_to_real", "contrast_to_real", "motion_to_teacher")
    measures: ClassVar[tuple[str, ...]] = tuple(field.name for field in fields(PixelStats))

    def measure(self, video: np.ndarray) -> MonitorRecord:
        return asdict(measure_pixels(video))

    def read(self, line: Mapping[str, Any]) -> MonitorRecord:
        return {name: float(line[name]) for name in self.measures}

    def summarise(self, records: Sequence[MonitorRecord], groups: Groups) -> dict[str, float]:
        return _means(records, self.measures)

    def ratio(self, measure: str, value: float, reference: float) -> float:
        return _ratio(value, reference)


@dataclass(frozen=True)
class NativeMonitorSuite:
    """See `MonitorSuite`: all measures, and diversity."""

    fps: float
    """Frames per second of the videos, by which dynamic degree takes its frames."""

    name: ClassVar[str] = "native"
    scored: ClassVar[tuple[str, ...]] = (
        *PixelMonitorSuite.scored,
        "sharpness_to_real",
        "motion_smoothness_dis_to_teacher",
        "diversity_appearance_to_teacher",
    )
    measures: ClassVar[tuple[str, ...]] = tuple(field.name for field in fields(ClipMeasures))

    def measure(self, video: np.ndarray) -> MonitorRecord:
        return {**asdict(measure_clip(video, self.fps)), "signature": asdict(signature(video))}

    def read(self, line: Mapping[str, Any]) -> MonitorRecord:
        return {
            **{name: float(line[name]) for name in self.measures},
            "signature": asdict(Signature(**line["signature"])),
        }

    def summarise(self, records: Sequence[MonitorRecord], groups: Groups) -> dict[str, float]:
        further = {i for group in groups for i in group[1:]}
        means = _means([record for i, record in enumerate(records) if i not in further], self.measures)
        if not groups:
            return means
        found = [diversity_of([Signature(**records[i]["signature"]) for i in group]) for group in groups]
        return means | {
            "diversity_appearance": float(np.mean([each.appearance for each in found])),
            "diversity_motion": float(np.mean([each.motion for each in found])),
        }

    def ratio(self, measure: str, value: float, reference: float) -> float:
        """Scores whose best is 1 all lie just below it: their distances from 1 are compared."""
        if measure in _BEST_IS_ONE:
            value, reference = 1.0 - value, 1.0 - reference
        return _ratio(value, reference)


_BEST_IS_ONE = ("temporal_flickering", "motion_smoothness_dis")
_SMALLEST = 1e-4
"""References below this are as good as nothing, and a ratio to them means nothing: grey videos, videos at rest."""


def _ratio(value: float, reference: float) -> float:
    return value / reference if reference >= _SMALLEST else float("nan")


def _means(records: Sequence[MonitorRecord], names: Sequence[str]) -> dict[str, float]:
    return {name: float(np.mean([record[name] for record in records])) for name in names}
