"""Monitors: while a run trains, the averaged student makes the same few videos again and again, and they are measured.

The videos are made from fixed prompts and fixed noise, so that from one measurement to the next only the student
changes. Two references stand beside them, measured once and kept in the run's folder: the real clips that have these
very captions, and what the many-step teacher makes of the same prompts from the same noise. A metric's ratio to a
reference is the ratio of the means over the clips.

Nothing here draws from a generator that training draws from, and nothing touches weights or gradients: a run gives the
same student whether it is watched or not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from avd.config import Recipe
from avd.data import LatentSource
from avd.distillation.monitoring.alarms import Alarms, Event, rules_of
from avd.distillation.monitoring.clips import MonitorClips
from avd.distillation.monitoring.measuring import ClipMeter, VideoSampler
from avd.distillation.monitoring.references import ReferenceFinder, References, mean_stats
from avd.distillation.monitoring.statistics import FakeScoreLevel, WeightStatistics
from avd.engine.loop import UpdateResult
from avd.engine.ranks import SINGLE_PROCESS, Ranks
from avd.engine.stopping import Heed, raise_if_asked, stop_requests
from avd.measures.video import PixelStats
from avd.types import CountProgress

_MEASURING = "while the monitors measured their references, of which those that are measured are kept"
_SMALLEST = 1e-4
"""References below this are as good as nothing, and a ratio to them means nothing: grey videos, videos at rest."""


@dataclass(frozen=True)
class MonitorResult:
    """What one measurement gave. `lasting` says what has been crossed for long enough to act, in words."""

    metrics: dict[str, float]
    events: list[Event]
    lasting: str | None
    best: bool
    """By `monitors.keep_best`, the best of the run so far."""


class Monitor:
    """Watches one run. Call `find_references` before the first `measure`: without them there are no ratios."""

    def __init__(
        self, recipe: Recipe, source: LatentSource, sampler: VideoSampler, ranks: Ranks = SINGLE_PROCESS
    ) -> None:
        self.recipe, self._sampler, self._ranks = recipe.monitors, sampler, ranks
        self._meter = ClipMeter(MonitorClips(recipe, source, ranks), sampler, ranks)
        self.weights = WeightStatistics(recipe.rollout.timesteps, ranks)
        self.fake_score = FakeScoreLevel()
        self._alarms = Alarms(rules_of(self.recipe.limits, recipe.rollout.timesteps))
        nothing = PixelStats(math.nan, math.nan, math.nan)
        self._references = References(nothing, nothing)
        self._best: float | None = None

    def find_references(
        self, folder: Path, tell: Callable[[str], None], progress: CountProgress = lambda done, total: None
    ) -> None:
        """Read what an earlier process of the run measured of teacher and real clips, or measure it.

        Raises Stopped, on all ranks, if one is asked to end meanwhile, before its next call of a network.
        """
        steps = self.recipe.teacher_steps or self._sampler.default_teacher_steps
        finder = ReferenceFinder(folder, self._meter, steps, self._ranks)
        references = finder.read()
        if references is None:
            tell(f"monitors: sampling the teacher on {len(self._meter.clips)} prompts in {steps} steps, once")
            with stop_requests() as stop:
                references = finder.measure(lambda: raise_if_asked(stop, self._ranks, _MEASURING), progress)
            self._sampler.rest()
        self._references = references

    def observe(self, result: UpdateResult) -> None:
        """Take note of one update: the fake score's loss and the regression's weights, if the method has them."""
        if "fake_score" in result.metrics:
            self.fake_score.add(result.metrics["fake_score"])
        regression = result.values.get("regression", {})
        if "weight" in regression:
            self.weights.add(regression["weight"], regression["timestep"])

    def measure(self, heed: Heed = lambda: None) -> MonitorResult:
        """Measure the student as it is, and judge. Raises what `heed` does, with nothing judged."""
        stats = mean_stats(self._meter.student(heed))
        metrics: dict[str, float] = asdict(stats)
        for name in asdict(stats):
            metrics[f"{name}_to_real"] = _ratio(getattr(stats, name), getattr(self._references.real, name))
            metrics[f"{name}_to_teacher"] = _ratio(getattr(stats, name), getattr(self._references.teacher, name))
        distances = score(metrics)
        metrics |= {"score": distances["score"], **self.weights.pop_metrics(), **self.fake_score.pop_metrics()}
        events = self._alarms.judge(metrics)
        metrics["warnings"] = self._alarms.crossed
        own = math.nan if self.recipe.keep_best is None else distances[self.recipe.keep_best]
        best = math.isfinite(own) and (self._best is None or own < self._best)
        if best:
            self._best = own
        lasting = self._alarms.lasting(metrics, self.recipe.patience)
        self._sampler.rest()
        return MonitorResult(metrics, events, lasting, best)

    def state_dict(self) -> dict[str, Any]:
        return {
            "weights": self.weights.state_dict(),
            "fake_score": self.fake_score.state_dict(),
            "alarms": self._alarms.state_dict(),
            "best": {"by": self.recipe.keep_best, "value": self._best},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.weights.load_state_dict(state["weights"])
        self.fake_score.load_state_dict(state["fake_score"])
        self._alarms.load_state_dict(state["alarms"])
        if state["best"]["by"] == self.recipe.keep_best:  # it may have been changed since
            self._best = state["best"]["value"]


def score(metrics: Mapping[str, float]) -> dict[str, float]:
    """How far the student is from its references, 0 at best: what `monitors.keep_best` keeps the least of.

        saturation = |ln(saturation / real data's)|      motion = |ln(motion / the teacher's)|
        score      = saturation + motion + |ln(contrast / real data's)|

    NaN where a ratio is not defined, infinite for a student without any motion or colour.
    """
    saturation, contrast, motion = (
        abs(math.log(ratio)) if ratio > 0 else math.nan if math.isnan(ratio) else math.inf
        for ratio in (metrics["saturation_to_real"], metrics["contrast_to_real"], metrics["motion_to_teacher"])
    )
    return {"saturation": saturation, "motion": motion, "score": saturation + contrast + motion}


def _ratio(value: float, reference: float) -> float:
    return value / reference if reference >= _SMALLEST else math.nan
