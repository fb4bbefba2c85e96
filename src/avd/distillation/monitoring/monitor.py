"""Monitors: while a run trains, the averaged student makes the same few videos again and again, and they are measured.

The videos are made from fixed prompts and fixed noise, so that from one measurement to the next only the student
changes. Two references stand beside them, measured once and kept in the run's folder: the real clips that have these
very captions, and what the many-step teacher makes of the same prompts from the same noise. A metric's ratio to a
reference is the ratio of the means over the clips. What is measured of a video is the suite's to say
(`monitoring/suites.py`).

Nothing here draws from a generator that training draws from, and nothing touches weights or gradients: a run gives the
same student whether it is watched or not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from avd.config import Recipe
from avd.data import LatentSource
from avd.distillation.monitoring.alarms import Alarms, Event, rules_of
from avd.distillation.monitoring.clips import MonitorClips
from avd.distillation.monitoring.measuring import ClipMeter, VideoSampler
from avd.distillation.monitoring.references import ReferenceFinder, References
from avd.distillation.monitoring.statistics import FakeScoreLevel, WeightStatistics
from avd.distillation.monitoring.suites import MonitorSuite, PixelMonitorSuite, suite_of
from avd.engine.loop import UpdateResult
from avd.engine.ranks import SINGLE_PROCESS, Ranks
from avd.engine.stopping import Heed, raise_if_asked, stop_requests
from avd.types import CountProgress

_MEASURING = "while the monitors measured their references, of which those that are measured are kept"


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
        self._suite = suite_of(recipe.monitors, sampler.fps)
        clips = MonitorClips(recipe, source, ranks)
        self._meter = ClipMeter(clips, sampler, self._suite, ranks)
        self.weights = WeightStatistics(recipe.trained_timesteps, ranks)
        self.fake_score = FakeScoreLevel()
        rules = rules_of(self.recipe.limits, recipe.trained_timesteps, several_seeds=bool(clips.groups))
        self._alarms = Alarms(rules)
        nothing = dict.fromkeys(self._suite.measures, math.nan)
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
            tell(f"monitors: sampling the teacher on {_describe(self._meter.clips)} in {steps} steps, once")
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
        found = self._suite.summarise(self._meter.student(heed), self._meter.clips.groups)
        metrics = found | ratios_to(self._references, found, self._suite)
        distances = score(metrics, self._suite.scored)
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
            "best": {"by": self._best_by, "value": self._best},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.weights.load_state_dict(state["weights"])
        self.fake_score.load_state_dict(state["fake_score"])
        self._alarms.load_state_dict(state["alarms"])
        if state["best"]["by"] == self._best_by:  # it may have been changed since
            self._best = state["best"]["value"]

    @property
    def _best_by(self) -> str | None:
        """What the best student so far is the best by. Scores of different suites are different numbers."""
        by = self.recipe.keep_best
        return f"{self._suite.name} score" if by == "score" and self._suite.name != PixelMonitorSuite.name else by


def ratios_to(references: References, found: Mapping[str, float], suite: MonitorSuite) -> dict[str, float]:
    """`<measure>_to_real` and `<measure>_to_teacher`, of every measure that the reference has."""
    kinds = {"real": references.real, "teacher": references.teacher}
    return {
        f"{name}_to_{kind}": suite.ratio(name, value, reference[name])
        for name, value in found.items()
        for kind, reference in kinds.items()
        if name in reference
    }


def score(metrics: Mapping[str, float], scored: Sequence[str]) -> dict[str, float]:
    """How far the student is from its references, 0 at best: what `monitors.keep_best` keeps the least of.

        saturation = |ln(saturation / real data's)|      motion = |ln(motion / the teacher's)|
        score      = sum of |ln ratio| over the ratios `scored` that were measured

    NaN where a ratio is not defined, infinite for a student without any motion or colour.
    """
    distances = {
        name: abs(math.log(ratio)) if ratio > 0 else math.nan if math.isnan(ratio) else math.inf
        for name in scored
        if (ratio := metrics.get(name)) is not None
    }
    return {
        "saturation": distances["saturation_to_real"],
        "motion": distances["motion_to_teacher"],
        "score": sum(distances.values()),
    }


def _describe(clips: MonitorClips) -> str:
    """How many videos of how many prompts."""
    prompts = f"{len(clips.indices)} prompts"
    return prompts if not clips.groups else f"{prompts}, {len(clips.groups)} of them from {len(clips.groups[0])} seeds,"
