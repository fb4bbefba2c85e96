"""The native suite: any video, measured by `avd.measures` without weights (docs/measures.md).

A reference gives a value its meaning: the teacher's clips of the same prompts and seeds, or real videos. Each
measure's `limit` is how far from it a student may be; this file is the one place where the limits stand. They are what
we call a fault and not a law: open to the side on which nothing is wrong, relative where the measure has a scale.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from avd.evaluation.suite import (
    ClipRecord,
    Limit,
    Measure,
    NumberFormat,
    Prompt,
    Scores,
    Shape,
    Values,
    group_by_prompt,
    share,
    standard_error,
)
from avd.measures.clip import clip_refusal, measure_clip
from avd.measures.diversity import Signature, diversity_of, signature
from avd.types import UserError

if TYPE_CHECKING:
    from avd.data import Video

_SIGNATURE = "signature"
"""The key of a record's values under which a clip's signature stands."""
_AS_REFERENCE = "as the reference"
_SHARE = NumberFormat(digits=3)

_OF_CLIPS = (
    Measure(
        "saturation",
        "Saturation",
        _AS_REFERENCE,
        "Mean HSV saturation: above the reference's looks fried, below it washed out.",
        _SHARE,
        least=0.0,
        most=1.0,
        limit=Limit(-0.10, 0.10, floor=0.01),
    ),
    share(
        "saturated_share",
        "Saturated pixels",
        "low",
        "Pixels whose saturation is above 0.95.",
        limit=Limit(None, 0.02, relative=False),
    ),
    share(
        "clipped_share",
        "Clipped pixels",
        "low",
        "Pixels burnt out to the end of a colour channel.",
        limit=Limit(None, 0.01, relative=False),
    ),
    Measure(
        "colourfulness",
        "Colourfulness",
        _AS_REFERENCE,
        "How strong and how varied the colours are, by Hasler and Süsstrunk.",
        NumberFormat(digits=1),
        least=0.0,
        limit=Limit(-0.15, 0.15, floor=1.0),
    ),
    Measure(
        "contrast",
        "Contrast",
        _AS_REFERENCE,
        "Standard deviation of the brightness within a frame.",
        _SHARE,
        least=0.0,
        most=1.0,
        limit=Limit(-0.10, 0.10, floor=0.005),
    ),
    Measure(
        "sharpness",
        "Sharpness",
        _AS_REFERENCE,
        "How much detail another blur would take away.",
        _SHARE,
        least=0.0,
        most=1.0,
        limit=Limit(-0.05, 0.05, relative=False),
    ),
    Measure(
        "temporal_flickering",
        "Temporal flickering",
        "near 1",
        "VBench's: 1 less the mean change from frame to frame, so 1 is steady; motion lowers it too.",
        NumberFormat(digits=4),
        least=0.0,
        most=1.0,
        limit=Limit(-0.01, None, relative=False),
    ),
    Measure(
        "temporal_variance",
        "Temporal variance",
        _AS_REFERENCE,
        "How much a pixel varies over the clip.",
        NumberFormat(digits=4),
        least=0.0,
        most=0.25,
        limit=Limit(-0.25, 0.25, floor=1e-4),
    ),
    Measure(
        "motion",
        "Edge motion",
        _AS_REFERENCE,
        "Mean speed of the picture's edges, in thousandths of the shorter side per frame.",
        NumberFormat(digits=2, scale=1000.0),
        least=0.0,
        limit=Limit(-0.20, 0.25, floor=1e-4),
    ),
    Measure(
        "motion_smoothness_dis",
        "Motion smoothness (DIS)",
        "near 1",
        "How well every second frame is predicted from its neighbours.",
        NumberFormat(digits=4),
        least=0.0,
        most=1.0,
        limit=Limit(-0.01, None, relative=False),
    ),
    replace(
        share(
            "dynamic_degree_dis",
            "Dynamic degree (DIS)",
            _AS_REFERENCE,
            "Videos that are dynamic by VBench's rule, with DIS flow in RAFT's place.",
            limit=Limit(-0.10, 0.10, relative=False),
        ),
        of_yes_or_no=True,
    ),
    Measure(
        "dynamic_level_dis",
        "Dynamic level (DIS)",
        _AS_REFERENCE,
        "The flow that decides it, in multiples of the rule's threshold.",
        NumberFormat(digits=2),
        least=0.0,
        limit=Limit(-0.20, 0.25, floor=0.02),
    ),
)
_OF_PROMPTS = (
    Measure(
        "diversity_appearance",
        "Diversity of pictures",
        _AS_REFERENCE,
        "How much clips of one prompt and several seeds differ in their colours and where these are.",
        _SHARE,
        least=0.0,
        most=1.0,
        limit=Limit(-0.20, None, floor=0.002),
    ),
    Measure(
        "diversity_motion",
        "Diversity of motion",
        _AS_REFERENCE,
        "How much they differ in what moves where, in thousandths of the shorter side per frame.",
        NumberFormat(digits=2, scale=1000.0),
        least=0.0,
        limit=Limit(-0.20, None, floor=1e-4),
    ),
)


@dataclass(frozen=True)
class NativeSuite:
    """A model is asked for each prompt of `prompts_file` (as `avd generate --prompts` reads it) `repeats` times.

    Videos made elsewhere, and models with such a reference, need no file.
    """

    prompts_file: str | None = None
    repeats: int = 2

    name: ClassVar[str] = "native"
    measures: ClassVar[tuple[Measure, ...]] = _OF_CLIPS + _OF_PROMPTS

    def __post_init__(self) -> None:
        if not 1 <= self.repeats <= 10_000:
            raise UserError(f"repeats is {self.repeats}: a prompt is answered with 1 to 10,000 seeds")
        self.prompts()  # refuses a file that cannot be read

    def unavailable(self) -> str | None:
        return None

    def prompts(self) -> Sequence[Prompt]:
        """None without a file. A line that stands twice is asked for once."""
        if self.prompts_file is None:
            return []
        from avd.data import read_prompts  # loads torch, which reading the declared measures does not need

        texts = dict.fromkeys(read_prompts(Path(self.prompts_file)))
        return [Prompt(text, repeat) for text in texts for repeat in range(self.repeats)]

    def refusal(self, shape: Shape, prompt: Prompt) -> str | None:
        return clip_refusal(shape.frames, shape.height, shape.width, shape.fps)

    def measure(self, video: Video, prompt: Prompt) -> dict[str, Any]:
        measured = asdict(measure_clip(video.frames, video.fps))
        return measured | {_SIGNATURE: asdict(signature(video.frames))}

    def prompt_values(self, records: Sequence[ClipRecord]) -> Values:
        """Diversity: the mean distance of all pairs of seeds; none of a single clip."""
        if len(records) < 2:
            return {}
        found = diversity_of([Signature(**record.values[_SIGNATURE]) for record in records])
        return {"diversity_appearance": found.appearance, "diversity_motion": found.motion}

    def summarise(self, records: Sequence[ClipRecord]) -> Scores:
        of_clips = {each.key: [record.values[each.key] for record in records] for each in _OF_CLIPS}
        values: Values = {key: _mean(found) for key, found in of_clips.items()}
        errors: Values = {key: standard_error(found) for key, found in of_clips.items()}
        of_prompts = [found for group in group_by_prompt(records).values() if (found := self.prompt_values(group))]
        for measure in _OF_PROMPTS:
            known = [found[measure.key] for found in of_prompts]
            values[measure.key] = _mean([value for value in known if value is not None]) if known else None
            errors[measure.key] = standard_error(known)
        return Scores(values, len(records), errors)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


SUITE = NativeSuite
