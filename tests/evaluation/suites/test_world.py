"""The world suite: rows of the truth, of samplers, and what it refuses."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from avd.data import Video
from avd.evaluation.judging import RENDERED, judge, judge_samples
from avd.evaluation.provenance import code_version, machine
from avd.evaluation.rows import Row
from avd.evaluation.sampling import sample_clips
from avd.evaluation.suite import Clip, Prompt, standard_error
from avd.evaluation.suites.world import OPEN_CAPTIONS, WorldSuite
from avd.types import UserError
from avd.world import World
from helpers.painter import TruthPainter

SUITE = WorldSuite(clips=12, repeats=2)


def frames_of(clips: Iterator[Clip]) -> np.ndarray:
    return np.stack([clip.read().frames for clip in clips])


def truth() -> Row:
    return judge(SUITE, SUITE.rendered(), name="rendered clips", origin=RENDERED)


def test_the_truth_is_a_perfect_row() -> None:
    row = truth()
    assert frames_of(SUITE.rendered()).shape == (12, 17, 48, 48, 3)
    keys = ("instance_preservation", "caption_accuracy", "clipped_share")
    assert [row.score("world", key) for key in keys] == [1.0, 1.0, 0.0]
    assert row.score("world", "speed_ratio") == pytest.approx(1.0)
    assert (row.steps, row.network_calls, row.seconds_per_video, row.videos) == (0, 0, None, 12)
    assert row.score("world", "diversity_colour") is None


def test_errors_are_those_of_shares_and_of_means() -> None:
    row = truth()
    share = row.score("world", "dynamic_degree")
    assert share is not None and 0 < share < 1
    assert row.error("world", "dynamic_degree") == pytest.approx((share * (1 - share) / 11) ** 0.5)  # 12 clips
    assert row.error("world", "instance_preservation") == 0.0
    judged = [SUITE.measure(clip.read(), clip.prompt) for clip in SUITE.rendered()]
    speeds = np.array([values["speed"] for values in judged])
    assert row.error("world", "speed_ratio") == pytest.approx(speeds.std(ddof=1) / 12**0.5 / speeds.mean())
    assert row.error("world", "diversity_colour") is None
    assert standard_error([1.0]) is None and standard_error([1.0, None, 3.0]) == pytest.approx(1.0)


def test_a_sampler_that_draws_the_truth_scores_like_it(tmp_path: Path) -> None:
    painter = TruthPainter()
    samples = sample_clips(painter, SUITE.prompts(), tmp_path, seed=3, batch=5)
    row, expected = judge_samples(SUITE, samples, name="painter"), truth()
    assert (frames_of(samples.clips())[:12] == frames_of(SUITE.rendered())).all()
    for key in ("saturation_error", "dynamic_degree", "speed_ratio", "instance_preservation", "caption_accuracy"):
        assert row.score("world", key) == expected.score("world", key)
    assert (row.steps, row.network_calls, row.seed, row.videos) == (4, 4, 3, 12)
    assert row.seconds_per_video is not None
    assert row.score("world", "diversity_colour") is not None
    assert painter.drawn == 12 + 2 * len(OPEN_CAPTIONS)


def test_damage_shows_in_the_row() -> None:
    def frozen(clip: Clip) -> Clip:
        frames = clip.read().frames
        return replace(clip, read=lambda: Video(np.repeat(frames[:1], len(frames), axis=0), 8))

    row, degree = judge(SUITE, map(frozen, SUITE.rendered()), name="frozen"), truth().score("world", "dynamic_degree")
    assert row.score("world", "dynamic_degree") == 0.0
    assert row.score("world", "speed_ratio") == pytest.approx(0.0, abs=0.02)
    assert degree is not None and degree > 0.4
    assert row.score("world", "instance_preservation") == 1.0


RIGHT = SUITE.world.clip(0, "heldout").video
LARGE = World(size=64).clip(0, "heldout").video


@pytest.mark.parametrize(
    ("frames", "fps", "caption", "words"),
    [
        (
            LARGE,
            8,
            "one ball",
            "17 frames of 64 x 64 at 8 fps, and the world's clips are 17 frames of 48 x 48 at 8 fps",
        ),
        (RIGHT[:, :32], 8, "one ball", "32 x 48"),
        (RIGHT[:9], 8, "one ball", "9 frames"),
        (RIGHT, 16, "one ball", "at 16 fps"),
        (RIGHT, 8, "a dog runs over the red sand", "(unknown: dog, runs, over, sand)"),
        (RIGHT, 8, "ein roter Ball", "(unknown: ein, roter)"),
        (RIGHT, 8, "一个红色的球", "(unknown: 一个红色的球)"),
        (RIGHT, 8, "...", "(unknown: none at all)"),
        (RIGHT, 8, "red red ball the the", "is not one that the world writes"),
    ],
)
def test_clips_that_are_not_the_worlds_are_refused(frames: np.ndarray, fps: float, caption: str, words: str) -> None:
    foreign = Clip("some/clip.mp4", Prompt(caption), lambda: Video(frames, fps))
    with pytest.raises(UserError) as caught:
        judge(SUITE, [*SUITE.rendered(), foreign], name="mixed")
    message = str(caught.value)
    assert message.startswith("some/clip.mp4: ") and words in message and "\n" not in message


@pytest.mark.parametrize("caption", ["A RED ball, drifting left!", "a video of two objects", *OPEN_CAPTIONS])
def test_captions_of_the_world_are_not_refused(caption: str) -> None:
    judge(SUITE, [Clip("clip", Prompt(caption), lambda: Video(RIGHT, 8.0))], name="one")


def test_every_caption_that_the_world_writes_is_its_own() -> None:
    suite = WorldSuite(clips=300, repeats=2)
    shape = suite._shape
    assert [prompt for prompt in suite.prompts() if suite.refusal(shape, prompt)] == []


def test_a_world_of_another_size_has_a_suite_too() -> None:
    suite = WorldSuite.of(World(size=64), clips=2, repeats=0)
    assert suite == WorldSuite(size=64, clips=2, repeats=0)
    assert judge(suite, suite.rendered(), name="rendered clips").score("world", "instance_preservation") == 1.0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"repeats": 1}, "at least 2 seeds"),
        ({"clips": 0}, "clips"),
        ({"level": 99}, "level is 99"),
        ({"size": 0}, "0 x 0"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, int], words: str) -> None:
    with pytest.raises(UserError, match=words):
        WorldSuite(**options)


def test_provenance() -> None:
    assert code_version().startswith("0.")
    assert "cores" in machine()


def test_captions_of_tuning_judge_nothing() -> None:
    """Neither the held-out captions that judge nor the open ones, which the world draws too at level 2."""
    judged = WorldSuite(level=2, clips=64, repeats=2)
    tuning = replace(judged, clips=512, repeats=0, first=1_000_000, without=64)
    assert not {prompt.text for prompt in judged.prompts()} & {prompt.text for prompt in tuning.prompts()}
