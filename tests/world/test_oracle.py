"""The oracle's parts: promises, diversity, summary, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest

from avd.world import Promises, ThingPromise, World, read_promises
from avd.world.oracle import ClipScores, ObjectReading, diversity, judge_clip, read_clip, summarise
from avd.world.oracle.motion import fit_motion
from avd.world.oracle.promises import check_promises
from avd.world.scene import DIRECTIONS

RED_BALL = ObjectReading("red", "ball", "slow", "left", 0.015)
BLUE_BOX = ObjectReading("blue", "box", "still", None, 0.0)


def scores_of(*objects: ObjectReading, text: str = "a thing", **changes: object) -> ClipScores:
    promised = check_promises(read_promises(text), objects)
    fields: dict = {
        "saturation_signed": 0.1,
        "saturation_error": 0.1,
        "clipped_share": 0.0,
        "speed": 0.02,
        "dynamic": True,
        "flow": 0.01,
        "faults": (),
        "intact_share": 1.0,
        "flicker": 0.0,
        "caption_accuracy": promised.accuracy,
        "kept": promised.kept,
        "objects": objects,
        "match": promised.match,
    }
    return ClipScores(**{**fields, **changes})


def test_the_match_keeps_most_promises() -> None:
    promises = Promises(2, (ThingPromise(colour="blue"), ThingPromise(shape="ball", direction="left")))
    outcome = check_promises(promises, (RED_BALL, BLUE_BOX))
    assert outcome.match == (1, 0)
    assert outcome.accuracy == 1.0


def test_what_is_not_there_keeps_no_promise() -> None:
    promises = Promises(2, (ThingPromise(colour="blue"), ThingPromise(colour="red", speed="moving")))
    outcome = check_promises(promises, (RED_BALL,))
    assert outcome.match == (None, 0)
    assert outcome.kept == {"count": (0, 1), "colour": (1, 2), "speed": (1, 1)}


def test_nothing_promised_gives_no_accuracy() -> None:
    assert check_promises(Promises(None, (ThingPromise(),)), (RED_BALL,)).accuracy is None
    assert check_promises(Promises(None, ()), ()).accuracy is None


@pytest.mark.parametrize("speed", ["slow", "fast"])
def test_moving_is_slow_or_fast(speed: str) -> None:
    found = ObjectReading("red", "ball", speed, "up", 0.02)
    assert check_promises(Promises(None, (ThingPromise(speed="moving"),)), (found,)).accuracy == 1.0


def test_a_bounce_counts_towards_the_path_and_not_the_direction() -> None:
    time = np.arange(17)
    x = 0.3 + 0.035 * np.where(time < 9, time, 18 - time)
    motion = fit_motion(time, np.stack([x, np.full(17, 0.5)], axis=1), 17, tuple(DIRECTIONS))
    assert motion.direction == "right"
    assert motion.pace == "fast"
    assert motion.path == pytest.approx(16 * 0.035, rel=0.02)


def test_a_late_start_is_the_first_movement() -> None:
    time = np.arange(17)
    y = 0.3 + 0.03 * np.maximum(time - 6, 0)
    motion = fit_motion(time, np.stack([np.full(17, 0.5), y], axis=1), 17, tuple(DIRECTIONS))
    assert motion.direction == "down"
    assert motion.path == pytest.approx(0.3, rel=0.02)


def test_an_object_seen_once_does_not_move() -> None:
    motion = fit_motion(np.array([4]), np.array([[0.2, 0.3]]), 17, tuple(DIRECTIONS))
    assert (motion.path, motion.speed, motion.direction) == (0.0, 0.0, None)


def test_an_empty_clip_is_not_preserved_and_keeps_nothing() -> None:
    scores = judge_clip(np.full((17, 48, 48, 3), 200, dtype=np.uint8), read_promises("one red ball"), 0)
    assert scores.faults == ("empty",)
    assert scores.intact_share == scores.speed == scores.flow == 0.0
    assert scores.flicker == pytest.approx(0.0, abs=1e-6)  # a mean of equal numbers may round
    assert scores.caption_accuracy == 0.0
    assert not scores.dynamic


@pytest.mark.parametrize("seed", range(3))
def test_noise_is_judged_without_complaint(seed: int) -> None:
    noise = np.random.default_rng(seed).integers(0, 256, (17, 48, 48, 3), dtype=np.uint8)
    scores = judge_clip(noise, read_promises("one red ball"), 0)
    assert not scores.instance_preserved
    assert np.isfinite(scores.flicker)


def test_fewer_objects_than_named_are_not_preserved() -> None:
    world = World()
    clip = next(clip for clip in map(world.clip, range(20)) if len(clip.scene.things) == 1)
    two = read_promises("a ball and a box")
    assert judge_clip(clip.video, two, 0).faults == ("missing",)


def test_diversity_of_rendered_clips_is_high_and_of_one_answer_nil() -> None:
    world = World()
    clips = [judge_clip(world.clip(index).video, None, 0) for index in range(16)]
    assert all(value > 0.5 for value in diversity({"two objects": clips}).values() if value is not None)
    same = [scores_of(RED_BALL)] * 8
    assert diversity({"a thing": same}) == {"colour": 0.0, "speed": 0.0, "direction": 0.0}


def test_diversity_counts_only_what_is_open() -> None:
    text = "a red ball at rest"
    clips = [scores_of(RED_BALL, text=text), scores_of(BLUE_BOX, text=text)]
    assert diversity({text: clips}) == {"colour": None, "speed": None, "direction": None}
    text = "a red ball moving left"
    fast = ObjectReading("red", "ball", "fast", "left", 0.04)
    clips = [scores_of(RED_BALL, text=text), scores_of(fast, text=text), scores_of(fast, text=text)]
    assert diversity({text: clips}) == {"colour": None, "speed": pytest.approx(2 / 3), "direction": None}


def test_diversity_needs_two_seeds() -> None:
    with pytest.raises(ValueError, match="two or more seeds"):
        diversity({"a thing": [scores_of(RED_BALL)]})


def test_summary() -> None:
    clips = [
        scores_of(RED_BALL),
        scores_of(RED_BALL, saturation_signed=-0.1, faults=("vanished",), dynamic=False, speed=0.0, text="a red thing"),
    ]
    means = summarise(clips, reference_speed=0.02)
    assert means["saturation_signed"] == 0.0
    assert means["saturation_error"] == pytest.approx(0.1)
    assert means["instance_preservation"] == means["dynamic_degree"] == means["speed_ratio"] == 0.5
    assert means["caption_accuracy"] == 1.0
    assert summarise([scores_of(RED_BALL)])["caption_accuracy"] is None
    assert summarise([scores_of(RED_BALL)])["speed_ratio"] is None
    with pytest.raises(ValueError, match="no clips"):
        summarise([])


@pytest.mark.parametrize(
    ("video", "level", "message"),
    [
        (np.zeros((17, 48, 48, 3), dtype=np.float32), 0, "give uint8"),
        (np.zeros((17, 48, 48), dtype=np.uint8), 0, "give uint8"),
        (np.zeros((2, 48, 48, 3), dtype=np.uint8), 0, "3 frames"),
        (np.zeros((17, 8, 48, 3), dtype=np.uint8), 0, "16 pixels"),
        (np.zeros((17, 48, 48, 3), dtype=np.uint8), 3, "choose 0 to 2"),
    ],
)
def test_what_is_not_a_clip_of_the_world_is_refused(video: np.ndarray, level: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_clip(video, level)


@pytest.mark.filterwarnings("error")
def test_a_clip_of_nothing_and_a_clip_of_noise_are_judged_too() -> None:
    blank = np.full((17, 48, 48, 3), 200, np.uint8)
    noise = np.random.default_rng(0).integers(0, 256, blank.shape, dtype=np.uint8)
    for video in (blank, noise):
        assert not judge_clip(video, read_promises("one red ball"), 0).instance_preserved
