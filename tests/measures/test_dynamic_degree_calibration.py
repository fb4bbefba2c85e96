"""Dynamic degree against the motion that was rendered: the level is the speed of the fastest object.

The rule's threshold is 6/256 sides per eighth of a second. At the world's 8 fps, slow objects stay below it (at most
0.0165 sides per frame) and fast ones go well past it (at least 0.034), so every decision is known. The clips are others
than those that the flow's damping was chosen on (indices below 60).
"""

from __future__ import annotations

import numpy as np
import pytest

from avd.measures.clip import ClipMeasures, measure_clip
from avd.world import World, WorldClip, render

THRESHOLD = 6 / 256


def clips(level: int) -> list[WorldClip]:
    return [World(level).clip(index, "heldout") for index in range(100, 140)]


def true_levels(clips: list[WorldClip]) -> np.ndarray:
    """Speed of the fastest object, with the camera's, in multiples of the threshold."""
    speeds = [max(np.hypot(*np.add(thing.velocity, clip.scene.pan)) for thing in clip.scene.things) for clip in clips]
    return np.array(speeds) / THRESHOLD


def measured(clips: list[WorldClip], size: int) -> list[ClipMeasures]:
    return [measure_clip(clip.video if size == 48 else render(clip.scene, size), 8.0) for clip in clips]


@pytest.mark.parametrize("size", [48, 192])
@pytest.mark.parametrize("level", [0, 1])
def test_the_level_is_the_speed_of_the_fastest_object(level: int, size: int) -> None:
    footage = clips(level)
    truth, measures = true_levels(footage), measured(footage, size)
    read = np.array([each.dynamic_level_dis for each in measures])
    moving = truth > 0
    assert [bool(each.dynamic_degree_dis) for each in measures] == list(truth > 1)
    assert read[~moving].max() == 0.0
    assert np.mean(read[moving] / truth[moving]) == pytest.approx(0.965, abs=0.03)
    assert np.std(read[moving] / truth[moving]) < 0.1
    assert np.corrcoef(read, truth)[0, 1] > 0.99


def test_texture_pans_and_drifting_light_change_few_decisions() -> None:
    """On faint gradients, a drift of the light looks like motion; undamped, one clip in seven is decided wrongly."""
    footage = clips(2)
    truth, measures = true_levels(footage), measured(footage, 48)
    right = [bool(each.dynamic_degree_dis) == (true > 1) for each, true in zip(measures, truth, strict=True)]
    assert np.mean(right) >= 0.95
    assert np.corrcoef([each.dynamic_level_dis for each in measures], truth)[0, 1] > 0.95


def test_the_rate_sets_how_far_apart_frames_are_compared() -> None:
    """The same frames at twice the rate: pairs are two frames apart, and so is their flow."""
    footage = [clip for clip in clips(0) if clip.scene.things[0].speed == "slow"][:6]
    once = [measure_clip(clip.video, 8.0) for clip in footage]
    twice = [measure_clip(clip.video, 16.0) for clip in footage]
    ratios = [b.dynamic_level_dis / a.dynamic_level_dis for a, b in zip(once, twice, strict=True)]
    assert np.mean(ratios) == pytest.approx(2.0, abs=0.15)
    assert not any(each.dynamic_degree_dis for each in once) and all(each.dynamic_degree_dis for each in twice)


def test_grain_on_an_even_wall_is_no_motion() -> None:
    still = next(clip for clip in clips(0) if clip.scene.things[0].speed == "still")
    frames = render(still.scene, 192).astype(float)
    grainy = np.clip(frames + np.random.default_rng(0).normal(0, 4, frames.shape), 0, 255).astype(np.uint8)
    assert measure_clip(grainy, 8.0).dynamic_level_dis < 0.5
