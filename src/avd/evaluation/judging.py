"""Judging: a suite, a stream of clips, a row."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from avd.evaluation.provenance import code_version, machine
from avd.evaluation.rows import Row
from avd.evaluation.sampling import Samples
from avd.evaluation.suite import Clip, Shape, Suite
from avd.models.settings import Settings
from avd.types import UserError


@dataclass(frozen=True)
class Origin:
    """How clips were made; the defaults are those of clips that no model of ours made."""

    seed: int = 0
    steps: int = 0
    network_calls: int = 0
    seconds_per_video: float | None = None
    recipe: dict[str, Any] | None = None


def judge(
    suite: Suite,
    clips: Iterable[Clip],
    *,
    name: str,
    origin: Origin | None = None,
    judged: Callable[[int], None] = lambda count: None,
) -> Row:
    """The row called `name` of clips, of which one at a time is in memory. `judged` gets the count so far.

    Raises UserError for a clip that the suite refuses.
    """
    origin = origin or Origin()
    scores = suite.score(_counted(clips, judged))
    return Row(
        name=name,
        steps=origin.steps,
        network_calls=origin.network_calls,
        seconds_per_video=origin.seconds_per_video,
        videos=scores.videos,
        seed=origin.seed,
        scores={suite.name: scores.values},
        recipe=origin.recipe,
        code_version=code_version(),
        machine=machine(),
    )


def judge_samples(
    suite: Suite,
    samples: Samples,
    *,
    name: str,
    recipe: dict[str, Any] | None = None,
    judged: Callable[[int], None] = lambda count: None,
) -> Row:
    """The row of clips that were sampled for the suite's prompts; `recipe` is that of the model."""
    origin = Origin(samples.seed, samples.steps, samples.network_calls, samples.seconds_per_video(), recipe)
    return judge(suite, samples.clips(), name=name, origin=origin, judged=judged)


def check_model(suite: Suite, settings: Settings, name: str) -> None:
    """Raise UserError, before anything is sampled, if the suite refuses clips like those that a model makes."""
    shape = Shape.of_model(settings)
    for prompt in suite.prompts():
        reason = suite.refusal(shape, prompt)
        if reason is not None:
            raise UserError(f"{name} makes clips that suite {suite.name} cannot judge: {reason}")


def _counted(clips: Iterable[Clip], judged: Callable[[int], None]) -> Iterator[Clip]:
    for count, clip in enumerate(clips, 1):
        yield clip
        judged(count)
