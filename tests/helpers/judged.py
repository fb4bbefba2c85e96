"""Sets of clips with values that a test chooses, in place of measured ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from avd.data import Video
from avd.evaluation.comparison import JudgedSet
from avd.evaluation.suite import ClipRecord, Measure, Prompt, Shape
from avd.report.comparison_page import ShownSet

SHAPE = Shape(5, 16, 24, 8.0)
_OF_PROMPT = "of_prompt"


def suite_of(*measures: Measure) -> Any:
    """What a comparison asks of a suite."""
    return SimpleNamespace(measures=measures, prompt_values=lambda records: records[0].values[_OF_PROMPT])


def judged(
    name: str,
    values: Mapping[str, Sequence[float]],
    *,
    repeats: int = 1,
    prompt_values: Mapping[str, Sequence[float]] | None = None,
) -> JudgedSet:
    """Clips `{name}/0.mp4` ... of the prompts "prompt 0" ..., each with `repeats` seeds; `values` by measure, in the
    order of the clips; `prompt_values` likewise, in the order of the prompts."""
    records = [
        ClipRecord(
            f"{name}/{i}.mp4",
            Prompt(f"prompt {i // repeats}", i % repeats),
            SHAPE,
            {key: each[i] for key, each in values.items()}
            | {_OF_PROMPT: {key: each[i // repeats] for key, each in (prompt_values or {}).items()}},
        )
        for i in range(len(next(iter(values.values()))))
    ]
    return JudgedSet.of(suite_of(), name, records)


def shown(judged: JudgedSet, read: list[str] | None = None) -> ShownSet:
    """The set with clips that can be read: of one colour, which differs from clip to clip. `read` lists which were."""

    def reader(name: str, level: int) -> Video:
        if read is not None:
            read.append(name)
        return Video(np.full((SHAPE.frames, SHAPE.height, SHAPE.width, 3), level, np.uint8), SHAPE.fps)

    names = [record.clip for record in judged.records]
    return ShownSet(judged, {name: lambda name=name, i=i: reader(name, 5 * i % 256) for i, name in enumerate(names)})
