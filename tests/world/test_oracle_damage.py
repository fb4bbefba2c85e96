"""Every damage moves its own measure, the right way and further the stronger it is, and leaves the others alone.

All comparisons are paired: the same clips, spoiled more and more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import pytest

from avd.world import World, WorldClip
from avd.world.damage import drop, duplicate, fuse, jitter_brightness, saturate, slow_down
from avd.world.oracle import ClipScores, judge_clip, summarise

Row = dict[str, float]
Damage = Callable[[WorldClip, float], np.ndarray]

TOLERANCE = {
    "saturation_signed": 0.01,
    "speed": 0.0006,
    "dynamic_degree": 0.0,
    "instance_preservation": 0.0,
    "caption_accuracy": 0.03,
    "flicker": 0.002,
}


@pytest.fixture(scope="module")
def clips() -> list[WorldClip]:
    world = World()
    return [world.clip(index, "heldout") for index in range(20)]


def judge_all(clips: Sequence[WorldClip], damage: Damage, strength: float) -> list[ClipScores]:
    return [judge_clip(damage(clip, strength), clip.caption.promises, 0) for clip in clips]


def means(scores: Sequence[ClipScores]) -> Row:
    return {name: value for name, value in summarise(scores).items() if value is not None}


def sweep(clips: Sequence[WorldClip], damage: Damage, strengths: Sequence[float]) -> list[Row]:
    return [means(judge_all(clips, damage, strength)) for strength in strengths]


def assert_untouched(rows: Sequence[Row], *but: str) -> None:
    """All measures but those named stay where they are in the first row, that of no damage."""
    for name, slack in TOLERANCE.items():
        if name not in but:
            assert all(abs(row[name] - rows[0][name]) <= slack for row in rows), (name, [row[name] for row in rows])


def assert_rising(values: Sequence[float], least: float) -> None:
    assert all(after - before > least for before, after in pairwise(values)), values


def test_saturation(clips: list[WorldClip]) -> None:
    rows = sweep(clips, lambda clip, s: saturate(clip.video, s), (1.0, 1.2, 1.5, 2.0, 3.0))
    assert_rising([row["saturation_signed"] for row in rows], 0.02)
    assert_rising([row["saturation_error"] for row in rows], 0.02)
    assert rows[-1]["clipped_share"] > 0.02
    assert_untouched(rows, "saturation_signed")


def test_lost_saturation_changes_the_sign(clips: list[WorldClip]) -> None:
    rows = sweep(clips, lambda clip, s: saturate(clip.video, s), (1.0, 0.8, 0.6))
    assert_rising([-row["saturation_signed"] for row in rows], 0.02)
    assert_rising([row["saturation_error"] for row in rows], 0.02)
    assert_untouched(rows, "saturation_signed")


def test_slow_motion(clips: list[WorldClip]) -> None:
    rows = sweep(clips, lambda clip, s: slow_down(clip.video, s), (1.0, 0.75, 0.5, 0.25, 0.0))
    for name in ("speed", "flow"):
        assert_rising([-row[name] for row in rows], 0.001)
        assert rows[2][name] == pytest.approx(rows[0][name] / 2, rel=0.1)
    assert rows[-1]["dynamic_degree"] == 0.0
    assert rows[-1]["speed"] == pytest.approx(0.0, abs=1e-6)  # least squares round
    assert all(before["dynamic_degree"] >= after["dynamic_degree"] for before, after in pairwise(rows))
    assert_untouched(rows, "speed", "dynamic_degree", "caption_accuracy")


def test_frozen_clips_break_promises_of_motion(clips: list[WorldClip]) -> None:
    for clip in clips:
        scores = judge_clip(slow_down(clip.video, 0.0), clip.caption.promises, 0)
        moving = sum(thing.direction is not None for thing in clip.caption.promises.things)
        assert scores.kept.get("direction", (0, 0)) == (0, moving)


def test_brightness_jitter(clips: list[WorldClip]) -> None:
    seeds = {id(clip): number for number, clip in enumerate(clips)}
    rows = sweep(clips, lambda clip, s: jitter_brightness(clip.video, s, seeds[id(clip)]), (0.0, 0.01, 0.03, 0.08))
    assert_rising([row["flicker"] for row in rows], 0.005)
    assert_untouched(rows, "flicker")


def test_noise_of_position_is_not_motion(clips: list[WorldClip]) -> None:
    still = [clip for clip in clips if all(thing.speed == "still" for thing in clip.scene.things)]
    assert still
    for clip in still:
        shifts = np.random.default_rng(len(clip.caption.text)).integers(-1, 2, (17, 2))
        shaken = np.stack([np.roll(frame, shift, (0, 1)) for frame, shift in zip(clip.video, shifts, strict=True)])
        assert not judge_clip(shaken, None, 0).dynamic


@pytest.mark.parametrize(("damage", "fault"), [(drop, "vanished"), (duplicate, "duplicated")])
def test_dropped_and_duplicated_objects(clips: list[WorldClip], damage: Callable, fault: str) -> None:
    rows = []
    for frames in (0, 1, 2, 4, 8):
        scores = judge_all(clips, lambda clip, n: damage(clip.scene, 48, 6, int(n)), frames)
        rows.append(means(scores))
        assert all(clip.faults == ((fault,) if frames else ()) for clip in scores)
        assert rows[-1]["intact_share"] == pytest.approx(1 - frames / 17)
    assert_untouched(rows, "instance_preservation")


def test_fused_objects(clips: list[WorldClip]) -> None:
    pairs = [clip for clip in clips if len(clip.scene.things) == 2]
    scores = [judge_all(pairs, lambda clip, s: fuse(clip.scene, 48, 6, s), s) for s in (0.0, 0.4, 0.55, 0.7)]
    rows = [means(row) for row in scores]
    assert rows[0]["instance_preservation"] == 1.0
    assert rows[-1]["instance_preservation"] == 0.0
    assert_rising([-row["instance_preservation"] for row in rows[:3]], 0.0)
    assert all(before["intact_share"] >= after["intact_share"] for before, after in pairwise(rows))
    assert any("fused" in clip.faults for clip in scores[2])
    assert all({"fused", "vanished", "resized"} & {*clip.faults} for clip in scores[-1])
    assert rows[-1]["saturation_signed"] == pytest.approx(rows[0]["saturation_signed"], abs=0.02)
    assert rows[-1]["flicker"] < 0.003


def test_fuse_refuses_a_lone_object(clips: list[WorldClip]) -> None:
    lone = next(clip for clip in clips if len(clip.scene.things) == 1)
    with pytest.raises(ValueError, match="1 object"):
        fuse(lone.scene, 48, 6, 1.0)


@pytest.mark.parametrize("level", [1, 2])
def test_a_lost_object_is_missed_where_crossings_are_allowed(level: int) -> None:
    world = World(level=level)
    clips = [world.clip(index, "heldout") for index in range(20)]
    lost = [judge_clip(drop(clip.scene, 48, 5, 12), None, level).instance_preserved for clip in clips]
    preserved = [judge_clip(clip.video, None, level).instance_preserved for clip in clips]
    assert sum(preserved) >= 19
    assert sum(lost) <= 1
