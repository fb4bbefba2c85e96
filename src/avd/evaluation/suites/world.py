"""The world suite: held-out captions of the built-in world, judged by its oracle (docs/oracle.md).

Captions that leave much open are asked for with several seeds, to measure diversity.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import TypeAdapter

from avd.evaluation.suite import (
    Clip,
    ClipRecord,
    Measure,
    NumberFormat,
    Prompt,
    Scores,
    Shape,
    Values,
    group_by_prompt,
    number_repeats,
    share,
    standard_error,
)
from avd.types import UserError
from avd.world import World, is_caption, read_promises, unknown_words
from avd.world.oracle import OPEN_ATTRIBUTES, ClipScores, diversity, judge_clip, summarise

if TYPE_CHECKING:
    from avd.data import Video

OPEN_CAPTIONS = (
    "one ball",
    "a red object",
    "one box moving fast",
    "a triangle and a ball",
    "something green",
    "one thing",
)
OPEN = "open"
"""The part of the suite that those captions make up."""
_CLIP_SCORES = TypeAdapter(ClipScores)


def _diversity(attribute: str) -> Measure:
    return Measure(
        f"diversity_{attribute}",
        f"Diversity of {attribute}",
        "as rendered",
        f"How much the {attribute} varies from seed to seed where the prompt leaves it open.",
        NumberFormat(digits=2),
        detail=True,
    )


@dataclass(frozen=True)
class WorldSuite:
    """`clips` held-out captions of the world at `level`, and `repeats` seeds of each open caption (0: no diversity).

    `size`, `frames` and `fps` are those of the world's clips; no other clips are judged.
    """

    level: int = 0
    clips: int = 128
    repeats: int = 8
    size: int = 48
    frames: int = 17
    fps: int = 8
    first: int = 0
    """The first of the held-out scenes whose captions are asked for."""
    without: int = 0
    """Captions that one of the first so many held-out scenes has are passed over, and with any also the open ones."""

    name: ClassVar[str] = "world"
    measures: ClassVar[tuple[Measure, ...]] = (
        Measure(
            "saturation_error",
            "Saturation error",
            "near 0",
            "How far the colours stray from the true ones, too strong and too pale alike.",
            NumberFormat(digits=3),
            least=0.0,
        ),
        Measure(
            "saturation_signed",
            "Saturation drift",
            "near 0",
            "Which way they stray: above 0 looks fried, below 0 washed out.",
            NumberFormat(digits=3, signed=True),
        ),
        share("clipped_share", "Clipped pixels", "low", "Pixels burnt out to the end of a colour channel."),
        share(
            "dynamic_degree",
            "Dynamic degree",
            "as rendered",
            "Videos in which something moves. A collapsed model stands still.",
        ),
        Measure(
            "speed_ratio",
            "Speed ratio",
            "near 1",
            "Measured speed over the speed it should be: below 1 is sluggish, above 1 hasty.",
            NumberFormat(digits=2),
            least=0.0,
        ),
        share(
            "instance_preservation",
            "Instance preservation",
            "high",
            "Videos in which every object stays intact: none vanishes, fuses with another, splits or doubles.",
        ),
        share(
            "caption_accuracy",
            "Caption accuracy",
            "high",
            "Promises of the prompt that the video keeps: count, colour, shape, motion.",
        ),
        Measure(
            "flicker",
            "Flicker",
            "low",
            "Change from frame to frame that motion does not explain.",
            NumberFormat(digits=4),
            least=0.0,
        ),
        *map(_diversity, OPEN_ATTRIBUTES),
    )

    def __post_init__(self) -> None:
        if self.clips < 1:
            raise UserError(f"clips of the world suite is {self.clips}: at least 1 is needed")
        if self.repeats < 0 or self.repeats == 1:
            raise UserError(f"repeats is {self.repeats}: diversity needs at least 2 seeds, and 0 leaves it out")
        if min(self.size, self.frames, self.fps) < 1:
            raise UserError(f"the world's clips are {self._shape}: none of these may be below 1")
        if min(self.first, self.without) < 0:
            raise UserError(f"first is {self.first} and without {self.without}: none of these may be below 0")
        for name, most in {
            "without": 100_000,
            "first": 2**31,
            "clips": 100_000,
            "repeats": 10_000,
            "size": 4096,
            "frames": 10_001,
            "fps": 1000,
        }.items():
            if getattr(self, name) > most:
                raise UserError(f"{name} of the world suite is {getattr(self, name)}: at most {most} can be judged")
        World(self.level)  # refuses a level that there is not

    @staticmethod
    def of(world: World, clips: int = 128, repeats: int = 8) -> WorldSuite:
        """The suite that judges clips of `world`."""
        return WorldSuite(world.level, clips, repeats, world.size, world.frames, world.fps)

    @property
    def world(self) -> World:
        return World(self.level, self.size, self.frames, self.fps)

    @property
    def _shape(self) -> Shape:
        return Shape(self.frames, self.size, self.size, self.fps)

    def unavailable(self) -> str | None:
        return None

    def prompts(self) -> Sequence[Prompt]:
        return self._heldout() + [Prompt(text, i, OPEN) for text in OPEN_CAPTIONS for i in range(self.repeats)]

    def rendered(self) -> Iterator[Clip]:
        """The clips that the world itself draws for its held-out captions: the truth."""
        for i, prompt in zip(self._scenes(), self._heldout(), strict=True):
            yield Clip(f"held-out clip {i}", prompt, partial(self._render, i))

    def reference_speed(self) -> float:
        """Mean speed of the truth, in sides per frame."""
        return _reference_speed(self.world, self._scenes())

    def refusal(self, shape: Shape, prompt: Prompt) -> str | None:
        expected = self._shape
        same_size = (shape.frames, shape.height, shape.width) == (expected.frames, expected.height, expected.width)
        if not same_size or abs(shape.fps - expected.fps) > 0.01:
            return (
                f"{shape}, and the world's clips are {expected}: judge clips of the world, or name theirs with "
                "--set size=, frames= and fps="
            )
        unknown = unknown_words(prompt.text)
        if unknown or not any(map(str.isalpha, prompt.text)):
            words = ", ".join(dict.fromkeys(unknown)) or "none at all"
            return (
                f"caption {prompt.text!r} is not the world's (unknown: {words}): judge clips that its captions describe"
            )
        if not is_caption(prompt.text):
            return f"caption {prompt.text!r} is not one that the world writes: judge clips that its captions describe"
        return None

    def measure(self, video: Video, prompt: Prompt) -> dict[str, Any]:
        scores = judge_clip(video.frames, read_promises(prompt.text), self.level)
        values: dict[str, Any] = _CLIP_SCORES.dump_python(scores, mode="json")
        shares = {"dynamic_degree": scores.dynamic, "instance_preservation": scores.instance_preserved}
        return values | {key: float(holds) for key, holds in shares.items()}

    def prompt_values(self, records: Sequence[ClipRecord]) -> Values:
        judged = [_CLIP_SCORES.validate_python(record.values) for record in records]
        if len(records) < 2 or records[0].prompt.part != OPEN:
            return {}
        spread = diversity({records[0].prompt.text: judged})
        return {f"diversity_{attribute}": value for attribute, value in spread.items()}

    def summarise(self, records: Sequence[ClipRecord]) -> Scores:
        heldout: list[ClipScores] = []
        by_caption: dict[str, list[ClipScores]] = {}
        for record in records:
            judged = _CLIP_SCORES.validate_python(record.values)
            if record.prompt.part == OPEN:
                by_caption.setdefault(record.prompt.text, []).append(judged)
            else:
                heldout.append(judged)
        values: Values = summarise(heldout, self.reference_speed())
        spread = diversity(by_caption) if by_caption else {}
        values |= {f"diversity_{attribute}": spread.get(attribute) for attribute in OPEN_ATTRIBUTES}
        values = {measure.key: values[measure.key] for measure in self.measures}
        return Scores(values, len(heldout), self._errors(records))

    def _errors(self, records: Sequence[ClipRecord]) -> Values:
        """Standard errors: of means over held-out clips, and of diversities over open captions."""
        heldout = [record.values for record in records if record.prompt.part != OPEN]
        errors = {
            measure.key: standard_error(values.get(measure.key) for values in heldout) for measure in self.measures
        }
        speed = standard_error(values["speed"] for values in heldout)
        errors["speed_ratio"] = None if speed is None else speed / self.reference_speed()
        spreads = [self.prompt_values(group) for group in group_by_prompt(records).values()]
        for attribute in OPEN_ATTRIBUTES:
            key = f"diversity_{attribute}"
            errors[key] = standard_error(spread.get(key) for spread in spreads)
        return errors

    def _heldout(self) -> list[Prompt]:
        return number_repeats(self.world.describe(i, "heldout")[1].text for i in self._scenes())

    def _scenes(self) -> tuple[int, ...]:
        """The numbers of the held-out scenes."""
        return _scenes(self.world, self.first, self.clips, self.without)

    def _render(self, index: int) -> Video:
        from avd.data import Video  # loads torch, which reading the declared measures does not need

        return Video(self.world.clip(index, "heldout").video, self.fps)


@cache
def _scenes(world: World, first: int, count: int, without: int) -> tuple[int, ...]:
    """`count` held-out scenes from `first` on; `without` as in the suite."""
    taken = {world.describe(i, "heldout")[1].text for i in range(without)} | set(OPEN_CAPTIONS if without else ())
    scenes = (i for i in itertools.count(first) if world.describe(i, "heldout")[1].text not in taken)
    return tuple(islice(scenes, count))


@cache
def _reference_speed(world: World, scenes: tuple[int, ...]) -> float:
    """Measured once per process: every row of a comparison needs it."""
    scores = []
    for i in scenes:
        clip = world.clip(i, "heldout")
        scores.append(judge_clip(clip.video, read_promises(clip.caption.text), world.level))
    speed = summarise(scores)["speed"]
    assert speed is not None
    return speed


SUITE = WorldSuite
