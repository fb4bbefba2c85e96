"""The contract of an evaluation suite: which measures it has, which prompts it wants answered, how it judges clips.

A suite is one file in `evaluation/suites` whose `SUITE` is a frozen dataclass that fills `Suite`; its fields are the
suite's options. Tables, pages and `results.json` follow from the measures it declares. A `ClipSuite` judges clip by
clip: it turns one clip into numbers, a `ClipRecord`, and many records into scores. So no two clips are in memory
together, records are kept on disk as they are made (`records.py`), and processes share the clips.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

if TYPE_CHECKING:  # reports read what suites declare, and are made without torch
    from avd.data import Video
    from avd.models.settings import Settings

ABSENT = "–"
Values = dict[str, float | None]
"""Values by the key of their measure; None where there is nothing to measure."""


@dataclass(frozen=True)
class NumberFormat:
    """How a value is shown: multiplied by `scale`, with `digits` decimals, and its unit."""

    digits: int = 0
    scale: float = 1.0
    unit: str = ""
    signed: bool = False

    def text(self, value: float | None) -> str:
        """The value as shown, unit included."""
        if value is None:
            return ABSENT
        return f"{value * self.scale:{'+' if self.signed else ''}.{self.digits}f}{self.unit}"

    def spread_text(self, values: Sequence[float], errors: Sequence[float] = ()) -> str:
        """`mean ± sample standard deviation`; the value alone where there is one, or all are equal.

        With the standard `errors` of values, their root mean square follows in brackets.
        """
        if not values:
            return ABSENT
        mean = sum(values) / len(values)
        text = self.text(mean).removesuffix(self.unit)
        if len(set(values)) > 1:
            deviation = (sum((value - mean) ** 2 for value in values) / (len(values) - 1)) ** 0.5
            text += f" ± {deviation * self.scale:.{self.digits}f}"
        if errors:
            error = (sum(each**2 for each in errors) / len(errors)) ** 0.5
            text += f" ({error * self.scale:.{self.digits}f})"
        return text + self.unit


@dataclass(frozen=True)
class Limit:
    """How far a value may lie from a reference's: a change from `low` to `high`, where None is open.

    If `relative`, the change is in shares of the reference's value, if that is above `floor`, else in the measure's own
    unit.
    """

    low: float | None
    high: float | None
    relative: bool = True
    floor: float = 0.0


@dataclass(frozen=True)
class Measure:
    """What a value means. It is from `least` to `most`, before scaling; None is open."""

    key: str
    title: str
    goal: str
    """Where a good value lies, in two or three words; empty where there is no better or worse."""
    help: str
    """What it says, in a sentence of plain language."""
    format: NumberFormat
    least: float | None = None
    most: float | None = None
    detail: bool = False
    """Shown on pages, which have room, and left out of tables."""
    limit: Limit | None = None
    """How far it may lie from a reference's; None where there is no verdict."""
    of_yes_or_no: bool = False
    """Whether it is a share of clips, each of which has a value of 0 or 1."""

    def allows(self, value: float) -> bool:
        """Whether `value` lies in the measure's range."""
        return (self.least is None or value >= self.least) and (self.most is None or value <= self.most)

    @property
    def change_format(self) -> NumberFormat:
        """How a change of it is shown: relative ones in per cent, those of per cents in points."""
        if self.limit is not None and self.limit.relative:
            return NumberFormat(digits=1, scale=100.0, unit=" %", signed=True)
        unit = " points" if self.format.unit == " %" else self.format.unit
        return replace(self.format, signed=True, unit=unit)

    def limit_text(self) -> str:
        """For example "-10 to +10 %"; empty without a limit."""
        if self.limit is None:
            return ""
        shown = self.change_format
        low, high = (None if end is None else f"{end * shown.scale:+g}" for end in (self.limit.low, self.limit.high))
        if low is not None and high is not None:
            return f"{low} to {high}{shown.unit}"
        return f"at most {high}{shown.unit}" if low is None else f"at least {low}{shown.unit}"


def share(key: str, title: str, goal: str, help: str, limit: Limit | None = None) -> Measure:
    """A measure in [0, 1], shown in per cent."""
    return Measure(
        key, title, goal, help, NumberFormat(digits=1, scale=100.0, unit=" %"), least=0.0, most=1.0, limit=limit
    )


@dataclass(frozen=True)
class Prompt:
    """One clip that a suite wants made: a text, and which repetition of it, from 0. Each repetition has its own noise.

    `part` is the part of the suite that the clip counts for, in the suite's own words.
    """

    text: str
    repeat: int = 0
    part: str = ""


def number_repeats(texts: Iterable[str]) -> list[Prompt]:
    """A prompt for each text; one that stands several times has repeats 0, 1 and so on, in this order."""
    counts: Counter[str] = Counter()
    prompts = []
    for text in texts:
        prompts.append(Prompt(text, counts[text]))
        counts[text] += 1
    return prompts


@dataclass(frozen=True)
class Shape:
    """Length and size of a clip in frames and pixels, and its frames per second."""

    frames: int
    height: int
    width: int
    fps: float

    @staticmethod
    def of_video(video: Video) -> Shape:
        frames, height, width, _ = video.frames.shape
        return Shape(frames, height, width, video.fps)

    @staticmethod
    def of_model(settings: Settings) -> Shape:
        """The shape of the clips that a model makes."""
        return Shape(settings.frames, settings.height, settings.width, settings.fps)

    def __str__(self) -> str:
        return f"{self.frames} frames of {self.height} x {self.width} at {self.fps:g} fps"


@dataclass(frozen=True)
class Clip:
    """A clip to be judged. `name` is its file, or what else a message should call it.

    `read` decodes it, again at each call; nothing is kept. `identity` says which content it is, for records on disk to
    be found again by; clips that are not kept on disk themselves have none.
    """

    name: str
    prompt: Prompt
    read: Callable[[], Video]
    identity: str = ""


@dataclass(frozen=True)
class ClipRecord:
    """What a suite measured of one clip."""

    clip: str
    """The clip's name."""
    prompt: Prompt
    shape: Shape
    values: dict[str, Any]
    """What JSON can hold, without NaN, and at most some kilobytes. What stands under the key of a declared measure is
    that measure's value of this clip alone; all else is the suite's own affair."""


PromptKey = tuple[str, str]
"""A prompt's part of the suite, and its text."""


def group_by_prompt(records: Iterable[ClipRecord]) -> dict[PromptKey, list[ClipRecord]]:
    """The records of each prompt, prompts as they first appear."""
    grouped: dict[PromptKey, list[ClipRecord]] = {}
    for record in records:
        grouped.setdefault((record.prompt.part, record.prompt.text), []).append(record)
    return grouped


@dataclass(frozen=True)
class Scores:
    """A value for every declared measure, and the number of clips that they are over."""

    values: Values
    videos: int
    errors: Values = field(default_factory=dict)
    """The standard error of values that are means over clips, or over prompts: what as many others would change."""


def standard_error(values: Iterable[float | None]) -> float | None:
    """That of a mean, s / sqrt(n) with the sample standard deviation s; for values of 0 and 1, the binomial's.

    What has no value is passed over; None with fewer than two.
    """
    known = [value for value in values if value is not None]
    if len(known) < 2:
        return None
    mean = sum(known) / len(known)
    return (sum((value - mean) ** 2 for value in known) / (len(known) - 1) / len(known)) ** 0.5


class Suite(Protocol):
    """What every suite declares, however its clips are judged."""

    name: ClassVar[str]
    """The name of the suite's module, and its key in `Row.scores`."""
    measures: ClassVar[tuple[Measure, ...]]
    """In the order in which they are shown."""

    def unavailable(self) -> str | None:
        """Why the suite cannot run here, in one line that says what to do; None if it can."""
        ...


@runtime_checkable
class ClipSuite(Suite, Protocol):
    """A suite that judges clip by clip."""

    def prompts(self) -> Sequence[Prompt]:
        """What a model is asked for, always the same and in the same order; empty if the user must say."""
        ...

    def refusal(self, shape: Shape, prompt: Prompt) -> str | None:
        """Why the suite cannot judge a clip of this shape made for this prompt, in one line; None if it can."""
        ...

    def measure(self, video: Video, prompt: Prompt) -> dict[str, Any]:
        """The values of a clip's `ClipRecord`. The clip is one that the suite does not refuse."""
        ...

    def prompt_values(self, records: Sequence[ClipRecord]) -> Values:
        """Values of the measures that compare the clips of one prompt, whose records are given; empty without any."""
        ...

    def summarise(self, records: Sequence[ClipRecord]) -> Scores:
        """Scores of the records of one or more clips, in the order of the clips."""
        ...
