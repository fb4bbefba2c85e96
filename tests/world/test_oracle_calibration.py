"""The oracle on clips of which the truth is known: held-out renderings, sharp, and blurred and noisy.

The stand-in for a video VAE is a blur of 0.7 pixels and noise of 2/255. docs/oracle.md has the metrics of larger runs.
"""

from __future__ import annotations

from collections import Counter
from functools import cache

import numpy as np
import pytest
from scipy import ndimage

from avd.world import Promises, Scene, ThingPromise, World
from avd.world.oracle import ClipScores, judge_clip, summarise

CLIPS = {False: 300, True: 150}
"""Clips of level 0, sharp and spoiled."""
MEASURES = ("count", "colour", "shape", "direction", "speed", "dynamic", "preserved")


def promise_everything(scene: Scene) -> Promises:
    things = tuple(
        ThingPromise(thing.colour, thing.shape, thing.speed, thing.direction if thing.speed != "still" else None)
        for thing in scene.things
    )
    return Promises(len(things), things)


def blur_and_noise(video: np.ndarray, seed: int, blur: float = 0.7, noise: float = 2.0) -> np.ndarray:
    soft = ndimage.gaussian_filter(video.astype(np.float32), (0, blur, blur, 0))
    noisy = soft + np.random.default_rng(seed).normal(0, noise, video.shape)
    return np.clip(noisy + 0.5, 0, 255).astype(np.uint8)


@cache
def judge_heldout(level: int, clips: int, spoiled: bool) -> tuple[list[Scene], list[ClipScores]]:
    world = World(level=level)
    scenes, scores = [], []
    for index in range(clips):
        clip = world.clip(index, "heldout")
        video = blur_and_noise(clip.video, index) if spoiled else clip.video
        scenes.append(clip.scene)
        scores.append(judge_clip(video, promise_everything(clip.scene), level))
    return scenes, scores


def share_right(scenes: list[Scene], scores: list[ClipScores]) -> dict[str, float]:
    right: Counter[str] = Counter()
    made: Counter[str] = Counter()
    for scene, clip in zip(scenes, scores, strict=True):
        moves = any(thing.speed != "still" for thing in scene.things)
        outcomes = {**clip.kept, "dynamic": (clip.dynamic == moves, 1), "preserved": (clip.instance_preserved, 1)}
        for name, (good, of) in outcomes.items():
            right[name] += int(good)
            made[name] += of
    return {name: right[name] / made[name] for name in MEASURES}


@pytest.mark.parametrize(
    ("level", "clips", "spoiled", "least"),
    [
        (0, CLIPS[False], False, 0.98),
        (0, CLIPS[True], True, 0.97),
        (1, 60, False, 0.96),
        (1, 60, True, 0.96),
        (2, 60, False, 0.96),
        (2, 60, True, 0.93),
    ],
)
def test_rendered_clips_are_read_right(level: int, clips: int, spoiled: bool, least: float) -> None:
    shares = share_right(*judge_heldout(level, clips, spoiled))
    assert min(shares.values()) >= least, shares


def test_strong_blur_and_noise_lose_no_object() -> None:
    world = World()
    for index in range(60):
        clip = world.clip(index, "heldout")
        scores = judge_clip(blur_and_noise(clip.video, index, blur=1.2, noise=3.0), promise_everything(clip.scene), 0)
        assert scores.instance_preserved
        assert scores.kept["count"] == (1, 1)
        assert scores.kept["colour"][0] == scores.kept["colour"][1]


@pytest.mark.parametrize("spoiled", [False, True])
def test_rendered_clips_score_as_truth_should(spoiled: bool) -> None:
    scenes, scores = judge_heldout(0, CLIPS[spoiled], spoiled)
    true_speed = np.mean([max(np.hypot(*thing.velocity) for thing in scene.things) for scene in scenes])
    means = {name: value for name, value in summarise(scores, float(true_speed)).items() if value is not None}
    assert all(type(value) is float for value in means.values())
    assert abs(means["saturation_signed"]) < 0.01
    assert means["saturation_error"] < 0.02
    assert means["clipped_share"] == 0.0
    assert means["speed_ratio"] == pytest.approx(1.0, abs=0.03)
    assert means["flicker"] < (0.003 if spoiled else 0.0005)


def test_flow_agrees_with_the_tracks_without_sharing_anything_with_them() -> None:
    _, scores = judge_heldout(0, CLIPS[False], False)
    speeds, flows = np.array([(clip.speed, clip.flow) for clip in scores]).T
    assert np.corrcoef(speeds, flows)[0, 1] > 0.85
    assert flows[speeds < 0.005].max() < 0.002
    assert flows[speeds > 0.03].mean() > 2 * flows[(speeds > 0.01) & (speeds < 0.02)].mean()


@pytest.mark.parametrize("size", [32, 64, 96])
def test_other_sizes_are_read_too(size: int) -> None:
    world = World(size=size)
    for index in range(8):
        clip = world.clip(index, "heldout")
        scores = judge_clip(clip.video, promise_everything(clip.scene), 0)
        assert scores.instance_preserved
        assert scores.caption_accuracy is not None and scores.caption_accuracy > 0.7
        assert scores.speed == pytest.approx(max(np.hypot(*t.velocity) for t in clip.scene.things), abs=0.004)
