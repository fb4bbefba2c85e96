"""The world suite: sample held-out captions of the built-in world, and let the oracle judge the clips."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch

from avd.evaluation.provenance import code_version, machine
from avd.evaluation.rows import Row
from avd.sampling.samplers import Sampler
from avd.world import World, read_promises
from avd.world.oracle import ClipScores, diversity, judge_clip, summarise

OPEN_CAPTIONS = (
    "one ball",
    "a red object",
    "one box moving fast",
    "a triangle and a ball",
    "something green",
    "one thing",
)
"""Captions that leave much open, sampled with several seeds to measure diversity."""

Progress = Callable[[int, int], None]
"""Called with (clips done, clips in all)."""


@dataclass(frozen=True)
class Suite:
    """`clips` held-out captions of `world`, and `repeats` seeds of each open caption (0: diversity is not measured)."""

    world: World
    clips: int = 128
    repeats: int = 8
    batch: int = 16

    def captions(self) -> list[str]:
        return [self.world.describe(i, "heldout")[1].text for i in range(self.clips)]

    def rendered(self) -> np.ndarray:
        """The clips that the world itself draws for the captions: the truth."""
        return np.stack([self.world.clip(i, "heldout").video for i in range(self.clips)])

    def judge(self, videos: np.ndarray, captions: Sequence[str]) -> list[ClipScores]:
        """The oracle's scores of uint8 videos (B, F, H, W, 3), from their pixels and their captions."""
        level = self.world.level
        return [judge_clip(v, read_promises(c), level) for v, c in zip(videos, captions, strict=True)]

    def reference_speed(self) -> float:
        """Mean speed of the truth, in sides per frame."""
        return _reference_speed(self)

    def row_of_truth(self, name: str = "rendered clips") -> tuple[Row, np.ndarray]:
        """The row any sampler aims at, and its videos."""
        videos = self.rendered()
        scores = self.judge(videos, self.captions())
        return self._row(name, scores, self.reference_speed(), seed=0), videos

    def row_of_sampler(
        self,
        name: str,
        sampler: Sampler,
        *,
        seed: int,
        reference_speed: float,
        recipe: dict[str, Any] | None = None,
        progress: Progress = lambda done, total: None,
    ) -> tuple[Row, np.ndarray]:
        """Sample every caption, judge, and return the row and the videos (B, F, H, W, 3) of `captions()`.

        Seconds are those of the denoising network and what stands between its calls, without text encoder and VAE,
        a clip's share of a batch.
        """
        captions = self.captions()
        repeated = [c for c in OPEN_CAPTIONS for _ in range(self.repeats)]
        everything, parts, seconds = captions + repeated, [], 0.0
        for start in range(0, len(everything), self.batch):
            prompts = everything[start : start + self.batch]
            generator = torch.Generator().manual_seed(seed * 1_000_003 + start)
            began = time.perf_counter()
            latents = sampler(prompts, generator)
            seconds += time.perf_counter() - began
            parts.append(sampler.model.decode_video(latents))
            progress(min(start + self.batch, len(everything)), len(everything))
        videos = np.concatenate(parts)
        scores = self.judge(videos, everything)
        row = self._row(name, scores[: self.clips], reference_speed, seed=seed)
        spread = diversity(_by_caption(repeated, scores[self.clips :])) if repeated else None
        measured = {
            "steps": sampler.steps,
            "network_calls": sampler.network_calls,
            "seconds_per_video": seconds / len(everything),
            "diversity": spread,
            "recipe": recipe,
        }
        return row.model_copy(update=measured), videos[: self.clips]

    def preview(self, sampler: Sampler, count: int, seed: int) -> np.ndarray:
        """The sampler's videos of the first captions, for a person to look at."""
        generator = torch.Generator().manual_seed(seed)
        return sampler.model.decode_video(sampler(self.captions()[:count], generator))

    def row_of_videos(self, name: str, videos: np.ndarray, captions: Sequence[str], reference_speed: float) -> Row:
        """Judge videos made elsewhere."""
        return self._row(name, self.judge(videos, captions), reference_speed, seed=0)

    @staticmethod
    def _row(name: str, scores: list[ClipScores], reference_speed: float, seed: int) -> Row:
        metrics = summarise(scores, reference_speed)
        shown = {key: metrics[key] for key in Row.model_fields if key in metrics}
        return Row(
            name=name,
            steps=0,
            network_calls=0,
            seconds_per_video=None,
            videos=len(scores),
            seed=seed,
            recipe=None,
            code_version=code_version(),
            machine=machine(),
            **shown,
        )


@cache
def _reference_speed(suite: Suite) -> float:
    """Once a process: every row of a comparison asks for it."""
    speed = summarise(suite.judge(suite.rendered(), suite.captions()))["speed"]
    assert speed is not None
    return speed


def _by_caption(captions: list[str], scores: list[ClipScores]) -> dict[str, list[ClipScores]]:
    grouped: dict[str, list[ClipScores]] = {}
    for caption, score in zip(captions, scores, strict=True):
        grouped.setdefault(caption, []).append(score)
    return grouped
