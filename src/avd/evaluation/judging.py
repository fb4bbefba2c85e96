"""Judging: a suite, a stream of clips, their records, a row."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from avd.distillation.numbers import NUMBERS
from avd.evaluation.provenance import code_version, machine
from avd.evaluation.records import RecordFolder
from avd.evaluation.rows import Row, Teacher
from avd.evaluation.sampling import Samples
from avd.evaluation.suite import Clip, ClipRecord, ClipSuite, Prompt, Shape
from avd.models.settings import Settings
from avd.types import CountProgress, UserError


@dataclass(frozen=True)
class Origin:
    """How clips were made; the defaults are those of clips of which nobody recorded it."""

    seed: int = 0
    steps: int | None = None
    network_calls: int | None = None
    seconds_per_video: float | None = None
    recipe: dict[str, Any] | None = None
    teacher: Teacher | None = None
    numbers: int | None = NUMBERS

    @staticmethod
    def of_samples(
        samples: Samples,
        recipe: dict[str, Any] | None = None,
        teacher: Teacher | None = None,
        numbers: int | None = NUMBERS,
    ) -> Origin:
        """How a model's clips were sampled; `recipe` is that of the model, `teacher` and `numbers` as in its row."""
        seconds = samples.seconds_per_video()
        return Origin(samples.seed, samples.steps, samples.network_calls, seconds, recipe, teacher, numbers)


RENDERED = Origin(steps=0, network_calls=0)
"""The origin of clips that the built-in world draws."""


def judge(
    suite: ClipSuite,
    clips: Iterable[Clip],
    *,
    name: str,
    origin: Origin | None = None,
    judged: Callable[[int], None] = lambda count: None,
) -> Row:
    """The row called `name` of clips, of which one at a time is in memory. `judged` gets the count so far.

    Raises UserError for a clip that cannot be read, one that the suite refuses, and where there is none.
    """
    records = []
    for clip in clips:
        records.append(_measure(suite, clip))
        judged(len(records))
    return make_row(suite, records, name=name, origin=origin)


def judge_samples(
    suite: ClipSuite,
    samples: Samples,
    *,
    name: str,
    recipe: dict[str, Any] | None = None,
    teacher: Teacher | None = None,
    numbers: int | None = NUMBERS,
    judged: Callable[[int], None] = lambda count: None,
) -> Row:
    """The row of clips that were sampled for the suite's prompts; `recipe` is that of the model."""
    origin = Origin.of_samples(samples, recipe, teacher, numbers)
    return judge(suite, samples.clips(), name=name, origin=origin, judged=judged)


def measure_share(
    suite: ClipSuite,
    clips: Sequence[Clip],
    records: RecordFolder,
    *,
    rank: int = 0,
    size: int = 1,
    progress: CountProgress = lambda done, total: None,
) -> None:
    """Measure those clips of process `rank` of `size` that have no record yet; `progress` counts this process's clips.

    Raises UserError as `judge` does for a clip.
    """
    own = clips[rank::size]
    for done, clip in enumerate(own, 1):
        if not records.has(clip):
            records.add(clip, _measure(suite, clip))
        progress(done, len(own))


def make_row(suite: ClipSuite, records: Sequence[ClipRecord], *, name: str, origin: Origin | None = None) -> Row:
    """The row called `name` of all clips' records. Raises UserError where there is none."""
    if not records:
        raise UserError("there are no clips to judge: give at least one")
    origin = origin or Origin()
    scores = suite.summarise(records)
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
        errors={suite.name: scores.errors} if scores.errors else {},
        teacher=origin.teacher,
        numbers=origin.numbers,
    )


def check_model(suite: ClipSuite, prompts: Iterable[Prompt], settings: Settings, name: str) -> None:
    """Raise UserError, before anything is sampled, if the suite refuses clips like those that a model makes."""
    shape = Shape.of_model(settings)
    for prompt in prompts:
        reason = suite.refusal(shape, prompt)
        if reason is not None:
            raise UserError(f"{name} makes clips that suite {suite.name} cannot judge: {reason}")


def _measure(suite: ClipSuite, clip: Clip) -> ClipRecord:
    video = clip.read()
    shape = Shape.of_video(video)
    reason = suite.refusal(shape, clip.prompt)
    if reason is not None:
        raise UserError(f"{clip.name}: {reason}")
    return ClipRecord(clip.name, clip.prompt, shape, suite.measure(video, clip.prompt))
