"""Monitors: while a run trains, the averaged student makes the same few videos again and again, and they are measured.

The videos are made from fixed prompts and fixed noise, so that from one measurement to the next only the student
changes. Two references stand beside them, measured once and kept in the run's folder: the real clips that have these
very captions, and what the many-step teacher makes of the same prompts from the same noise. A metric's ratio to a
reference is the ratio of the means over the clips.

Nothing here draws from a generator that training draws from, and nothing touches weights or gradients: a run gives the
same student whether it is watched or not.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from avd.config import Recipe
from avd.data import LatentSource
from avd.distillation.monitoring.alarms import Alarms, Event, rules_of
from avd.distillation.monitoring.statistics import FakeScoreLevel, WeightStatistics
from avd.engine.loop import UpdateResult
from avd.engine.randomness import generator_for
from avd.engine.ranks import SINGLE_PROCESS, Ranks
from avd.files import read_text, write_json
from avd.measures.video import PixelStats, measure_pixels
from avd.sampling.rollout import Renoise
from avd.types import Conditions

REFERENCES_FILE = "references.json"

_SMALLEST = 1e-4
"""References below this are as good as nothing, and a ratio to them means nothing: grey videos, videos at rest."""


class VideoSampler(Protocol):
    """What makes the videos. `noise` is (B, C, F, H, W), `prompts` one row per clip, all on the CPU."""

    def student(self, noise: Tensor, prompts: Conditions, renoise: Renoise) -> Tensor:
        """Latents of the averaged student's rollout."""
        ...

    def teacher(self, noise: Tensor, prompts: Conditions, steps: int | None) -> Tensor:
        """Latents of the teacher, in as many steps as its model's settings say or in `steps`."""
        ...

    def decode(self, latents: Tensor) -> np.ndarray:
        """uint8 videos (B, F, H, W, 3)."""
        ...

    def rest(self) -> None:
        """Called when no video is wanted for a while."""
        ...


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
        self.recipe, self._source, self._sampler, self._ranks = recipe.monitors, source, sampler, ranks
        self._seed, self._batch = recipe.seed, recipe.compute.microbatch
        count = min(self.recipe.clips, len(source))
        self._indices = [i * len(source) // count for i in range(count)]
        shares = ranks.data_size
        self._own = self._indices[ranks.data_rank :: shares] if count % shares == 0 else self._indices
        """What this rank makes: its share, or all where shares would not be equal."""
        self.weights = WeightStatistics(recipe.rollout.timesteps, ranks)
        self.fake_score = FakeScoreLevel()
        self._alarms = Alarms(rules_of(self.recipe.limits, recipe.rollout.timesteps))
        self._teacher = self._real = PixelStats(math.nan, math.nan, math.nan)
        self._best: float | None = None

    def find_references(self, folder: Path, tell: Callable[[str], None]) -> None:
        """Measure teacher and real clips, or read what an earlier process of the run measured."""
        path = folder / REFERENCES_FILE
        key = {"clips": self._indices, "teacher_steps": self.recipe.teacher_steps}
        references = self._ranks.decide(lambda: _read_references(path, key))
        if references is None:
            tell(f"monitors: sampling the teacher on {len(self._indices)} prompts, once")
            steps, sampler = self.recipe.teacher_steps, self._sampler
            teacher = self._measure(lambda noise, prompts, _: sampler.teacher(noise, prompts, steps))
            clips = (self._source.latents([i]) for i in self._own)
            real = self._mean([measure_pixels(video) for clip in clips for video in sampler.decode(clip)])
            references = {"teacher": asdict(teacher), "real": asdict(real)}
            with self._ranks.together():
                if self._ranks.is_main:
                    write_json(path, {**key, **references})
        self._teacher, self._real = PixelStats(**references["teacher"]), PixelStats(**references["real"])

    def observe(self, result: UpdateResult) -> None:
        """Take note of one update: the fake score's loss and the regression's weights, if the method has them."""
        if "fake_score" in result.metrics:
            self.fake_score.add(result.metrics["fake_score"])
        regression = result.values.get("regression", {})
        if "weight" in regression:
            self.weights.add(regression["weight"], regression["timestep"])

    def measure(self) -> MonitorResult:
        """Measure the student as it is, and judge."""
        stats = self._measure(self._sampler.student)
        metrics: dict[str, float] = asdict(stats)
        for name in asdict(stats):
            metrics[f"{name}_to_real"] = _ratio(getattr(stats, name), getattr(self._real, name))
            metrics[f"{name}_to_teacher"] = _ratio(getattr(stats, name), getattr(self._teacher, name))
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

    def _measure(self, make: Callable[[Tensor, Conditions, Renoise], Tensor]) -> PixelStats:
        """Mean metrics of what `make` makes of the fixed prompts and noise."""
        stats, shape = [], self._source.latents([0]).shape[1:]
        size = self._batch or len(self._own)
        for start in range(0, len(self._own), size):
            indices = self._own[start : start + size]

            def noise(stage: int | str, indices: list[int] = indices) -> Tensor:
                each = (generator_for(self._seed, "monitor", stage, i) for i in indices)
                return torch.stack([torch.randn(*shape, generator=generator) for generator in each])

            latents = make(noise("start"), self._source.prompts(indices), noise)
            stats += [measure_pixels(video) for latent in latents.split(1) for video in self._sampler.decode(latent)]
        return self._mean(stats)

    def _mean(self, stats: list[PixelStats]) -> PixelStats:
        """Over the clips of all ranks."""
        columns = zip(*(asdict(each).values() for each in stats), strict=True)
        own = {name: float(np.mean(column)) for name, column in zip(asdict(stats[0]), columns, strict=True)}
        return PixelStats(**self._ranks.mean_metrics(own))


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


def _read_references(path: Path, key: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the file holds, if it answers `key`; a recipe's monitors may change between processes."""
    try:
        found: dict[str, Any] = json.loads(read_text(path))
        fits = all(found[name] == value for name, value in key.items())
        return found if fits and PixelStats(**found["teacher"]) and PixelStats(**found["real"]) else None
    except (ValueError, KeyError, TypeError):
        return None
