"""A sampler's clips, sampled and judged: the part that experiments share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from avd.evaluation.judging import judge_samples
from avd.evaluation.rows import Row
from avd.evaluation.sampling import Samples, sample_clips
from avd.evaluation.suite import Suite
from avd.experiments import Bars
from avd.sampling.samplers import Sampler


def measure(
    suite: Suite,
    sampler: Sampler,
    folder: Path,
    *,
    name: str,
    seed: int,
    recipe: dict[str, Any] | None,
    title: str,
    bars: Bars,
) -> tuple[Row, Samples]:
    """The row of a sampler and the clips in `folder` that it is of; a bar called `title` counts them."""
    with bars() as bar:
        samples = sample_clips(sampler, suite.prompts(), folder, seed=seed, progress=bar(title))
    return judge_samples(suite, samples, name=name, recipe=recipe), samples
