"""A sampler's clips, sampled and judged: the part that experiments share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from avd.evaluation.judging import judge_samples
from avd.evaluation.provenance import numbers_of, teacher_of
from avd.evaluation.rows import Row
from avd.evaluation.sampling import Samples, sample_clips
from avd.evaluation.suite import ClipSuite
from avd.experiments import Bars
from avd.models.devices import read_launch
from avd.models.family import name_of
from avd.sampling.samplers import Sampler
from avd.types import UserError


def check_one_process() -> None:
    """Raise UserError where torchrun has started several processes: each would do all of an experiment."""
    size = read_launch(os.environ).size
    if size > 1:
        raise UserError(
            f"WORLD_SIZE is {size}, and this command runs in one process: start it without torchrun, or distill each "
            "recipe with it first"
        )


def measure(
    suite: ClipSuite,
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
    folder_of_model = sampler.model.folder
    if folder_of_model is None:
        return judge_samples(suite, samples, name=name, recipe=recipe), samples
    model = name_of(folder_of_model)
    teacher, numbers = teacher_of(model, recipe), numbers_of(model)
    return judge_samples(suite, samples, name=name, recipe=recipe, teacher=teacher, numbers=numbers), samples
