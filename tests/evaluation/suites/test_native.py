"""The native suite: its scores are means of `avd.measures`, its comparison finds damage of a known kind."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np
import pytest

from avd.data import Video
from avd.evaluation.comparison import Conclusion, JudgedSet, compare_sets
from avd.evaluation.judging import check_model, judge, make_row
from avd.evaluation.suite import Clip, ClipRecord, Prompt, Shape
from avd.evaluation.suites.native import NativeSuite
from avd.measures.clip import ClipMeasures, measure_clip
from avd.models.settings import Settings
from avd.types import UserError
from avd.world.damage import saturate
from helpers.painter import WORLD

SUITE = NativeSuite()
PAGE = Path(__file__).parents[3] / "docs" / "evaluation.md"
Damage = Callable[[np.ndarray], np.ndarray]


def clips(damage: Damage = lambda video: video, *, prompts: int = 12, alike: bool = False) -> list[Clip]:
    """Two seeds of each prompt; if `alike`, the first seed's clip for both."""
    return [
        Clip(
            f"{i}-{k}",
            Prompt(f"prompt {i}", k),
            lambda i=i, k=k: Video(damage(WORLD.clip(2 * i + (0 if alike else k), "heldout").video), 8.0),
        )
        for i in range(prompts)
        for k in range(2)
    ]


def freeze(video: np.ndarray) -> np.ndarray:
    return np.repeat(video[:1], len(video), axis=0)


def records(found: Sequence[Clip]) -> list[ClipRecord]:
    videos = [clip.read() for clip in found]
    return [
        ClipRecord(clip.name, clip.prompt, Shape.of_video(video), SUITE.measure(video, clip.prompt))
        for clip, video in zip(found, videos, strict=True)
    ]


@pytest.fixture(scope="module")
def teacher() -> JudgedSet:
    return JudgedSet.of(SUITE, "teacher", records(clips()))


def verdicts(found: Sequence[Clip], reference: JudgedSet) -> dict[str, Conclusion | None]:
    compared = compare_sets(SUITE, JudgedSet.of(SUITE, "student", records(found)), reference)
    return {each.measure.key: each.verdict for each in compared.differences}


def test_every_measure_of_a_clip_is_declared_and_scored_by_its_mean(teacher: JudgedSet) -> None:
    keys = [field.name for field in fields(ClipMeasures)]
    assert [measure.key for measure in SUITE.measures][: len(keys)] == keys
    measured = [asdict(measure_clip(clip.read().frames, 8.0)) for clip in clips()]
    row = judge(SUITE, clips(), name="mine")
    for key in keys:
        assert row.score("native", key) == pytest.approx(np.mean([each[key] for each in measured]))
    assert row.videos == 24


def test_diversity_is_the_mean_over_prompts_of_the_mean_distance_of_their_seeds(teacher: JudgedSet) -> None:
    row = make_row(SUITE, teacher.records, name="mine")
    for key in ("diversity_appearance", "diversity_motion"):
        by_prompt = [values[key] for values in teacher.prompt_values.values()]
        assert len(by_prompt) == 12 and row.score("native", key) == pytest.approx(np.mean(by_prompt))
        assert (row.score("native", key) or 0) > 0


def test_one_seed_has_no_diversity() -> None:
    row = judge(SUITE, clips(prompts=2)[::2], name="mine")
    assert row.score("native", "diversity_appearance") is None and row.score("native", "motion") is not None


def test_the_same_clips_are_within_every_limit(teacher: JudgedSet) -> None:
    found = verdicts(clips(), teacher)
    assert found.pop("dynamic_degree_dis") is Conclusion.undecided  # 12 yeses and noes do not decide on 10 points
    assert set(found.values()) == {Conclusion.within}


def test_a_fried_student_is_outside_the_limit_of_saturation_and_inside_that_of_motion(teacher: JudgedSet) -> None:
    found = verdicts(clips(lambda video: saturate(video, 1.6)), teacher)
    assert found["saturation"] is Conclusion.outside and found["motion"] is Conclusion.within


def test_a_static_student_is_outside_the_limits_of_motion_and_inside_those_of_colour(teacher: JudgedSet) -> None:
    found = verdicts(clips(freeze), teacher)
    outside = {"motion", "dynamic_level_dis", "temporal_variance", "diversity_motion"}
    assert {found[key] for key in outside} == {Conclusion.outside}
    assert {found[key] for key in ("saturation", "colourfulness", "sharpness", "contrast")} == {Conclusion.within}


def test_every_seed_the_same_video_is_outside_the_limit_of_diversity_alone(teacher: JudgedSet) -> None:
    found = verdicts(clips(alike=True), teacher)
    assert found["diversity_appearance"] is found["diversity_motion"] is Conclusion.outside
    others = {verdict for key, verdict in found.items() if not key.startswith("diversity")}
    assert Conclusion.outside not in others


def test_prompts_of_a_file_are_asked_for_with_several_seeds(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("a cat\na dog\na cat\n")
    suite = NativeSuite(str(file), repeats=2)
    assert suite.prompts() == [Prompt("a cat"), Prompt("a cat", 1), Prompt("a dog"), Prompt("a dog", 1)]
    assert NativeSuite().prompts() == []


def test_options_that_cannot_be_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="repeats is 0"):
        NativeSuite(repeats=0)
    with pytest.raises(UserError, match=r"none\.txt"):
        NativeSuite(str(tmp_path / "none.txt"))


def test_a_model_whose_clips_are_too_short_is_refused_before_it_is_sampled() -> None:
    with pytest.raises(UserError, match="model makes clips that suite native cannot judge: 2 frames at 16 fps"):
        check_model(SUITE, [Prompt("a cat")], Settings(frames=2, height=480, width=832, fps=16), "model")


def test_the_page_states_the_limits_that_are_declared() -> None:
    stated = dict(re.findall(r"^\| `(\w+)` \| [^|]+ \| ([^|]+) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE))
    for measure in SUITE.measures:
        assert stated[measure.key] == measure.limit_text() != ""
