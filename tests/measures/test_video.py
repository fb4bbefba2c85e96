"""The monitors' metrics of a video: each damage moves its own, and flicker is not motion."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avd.measures.video import measure_pixels, motion
from avd.world import World, WorldClip, render
from avd.world.damage import fuse, jitter_brightness, saturate, slow_down

Change = Callable[[WorldClip, int], np.ndarray]


@pytest.fixture(scope="module")
def clips() -> list[WorldClip]:
    return [World().clip(index, "heldout") for index in range(16)]


def mean_motion(clips: list[WorldClip], change: Change = lambda clip, i: clip.video) -> float:
    return float(np.mean([motion(change(clip, i)) for i, clip in enumerate(clips)]))


def frozen(clip: WorldClip) -> np.ndarray:
    return slow_down(clip.video, 0.0)


def test_saturation_and_contrast_against_their_definitions() -> None:
    video = np.random.default_rng(0).integers(0, 256, (3, 8, 10, 3), dtype=np.uint8)
    unit = video / 255
    saturation = [(p.max() - p.min()) / p.max() if p.max() else 0.0 for p in unit.reshape(-1, 3)]
    contrast = [np.std([p.mean() for p in frame.reshape(-1, 3)]) for frame in unit]
    stats = measure_pixels(video)
    assert stats.saturation == pytest.approx(np.mean(saturation), rel=1e-5)
    assert stats.contrast == pytest.approx(np.mean(contrast), rel=1e-5)


def test_memory_does_not_grow_with_the_frames() -> None:
    """But for the thumbnails, a hundredth of the video here."""

    def peak(frames: int) -> int:
        video = np.zeros((frames, 240, 320, 3), np.uint8)
        tracemalloc.start()
        measure_pixels(video)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    few, many = peak(2), peak(10)
    assert many - few < 240 * 320 * 3 * 4, "eight more frames cost less than one in floats"


def test_a_black_video_has_nothing() -> None:
    stats = measure_pixels(np.zeros((5, 48, 48, 3), np.uint8))
    assert (stats.saturation, stats.contrast, stats.motion) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("shape", [(1, 48, 48, 3), (2, 48, 48, 3), (9, 16, 40, 3), (9, 4, 4, 3)])
def test_any_size_has_metrics(shape: tuple[int, ...]) -> None:
    stats = measure_pixels(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))
    assert all(np.isfinite([stats.saturation, stats.contrast, stats.motion]))


@given(speed=st.floats(0.002, 0.04), angle=st.floats(0.0, 2 * np.pi), colour=st.integers(0, 15))
@settings(max_examples=25, deadline=None)
def test_a_known_speed_is_read(speed: float, angle: float, colour: int) -> None:
    """A pattern that moves as a whole, so that every window moves alike."""
    phase = np.random.default_rng(colour).uniform(0, 6, (3, 4))
    axis = (np.arange(48) + 0.5) / 48
    x, y = np.meshgrid(axis, axis)
    frames = []
    for frame in range(9):
        u, v = x - frame * speed * np.cos(angle), y - frame * speed * np.sin(angle)
        waves = [np.sin(9 * u + a) + np.sin(9 * v + b) + np.sin(6 * (u + v) + c) + np.sin(6 * (u - v) + d)
                 for a, b, c, d in phase]  # fmt: skip
        frames.append(np.stack(waves, axis=-1) / 8 + 0.5)
    video = (np.stack(frames) * 255).round().astype(np.uint8)
    assert motion(video) == pytest.approx(speed, rel=0.2)


def test_motion_follows_the_speed_of_the_objects(clips: list[WorldClip]) -> None:
    speeds = [np.mean([np.hypot(*thing.velocity) for thing in clip.scene.things]) for clip in clips]
    seen = [motion(clip.video) for clip in clips]
    assert np.corrcoef(speeds, seen)[0, 1] > 0.95
    assert np.sum(seen) / np.sum(speeds) == pytest.approx(1.0, abs=0.2)


def test_a_slowed_video_moves_less_in_proportion_and_a_frozen_one_not_at_all(clips: list[WorldClip]) -> None:
    unchanged = mean_motion(clips)
    for pace in (0.75, 0.5, 0.25, 0.0):
        assert mean_motion(clips, lambda clip, i, p=pace: slow_down(clip.video, p)) / unchanged == pytest.approx(
            pace, abs=0.08
        )
    assert mean_motion(clips, lambda clip, i: frozen(clip)) == 0.0


def blink(clip: WorldClip, i: int) -> np.ndarray:
    """Every second frame a tenth brighter."""
    video = frozen(clip).astype(float)
    video[::2] *= 1.1
    return np.clip(video, 0, 255).astype(np.uint8)


def tint(clip: WorldClip, i: int) -> np.ndarray:
    """Every frame in a light of another colour."""
    light = np.random.default_rng(i).uniform(-20, 20, (17, 1, 1, 3))
    return np.clip(frozen(clip) + light, 0, 255).astype(np.uint8)


def grain(clip: WorldClip, i: int) -> np.ndarray:
    """New noise in every frame."""
    return np.clip(frozen(clip) + np.random.default_rng(i).normal(0, 5, (17, 48, 48, 3)), 0, 255).astype(np.uint8)


def flash(clip: WorldClip, i: int) -> np.ndarray:
    """A patch somewhere is brighter or darker in every frame."""
    video, rng = frozen(clip).astype(float), np.random.default_rng(i)
    for frame in video:
        y, x = rng.integers(0, 36, 2)
        frame[y : y + 12, x : x + 12] += rng.normal(0, 25)
    return np.clip(video, 0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    ("flicker", "most"),
    [
        (lambda c, i: jitter_brightness(frozen(c), 0.08, i), 0.01),
        (blink, 0.01),
        (tint, 0.01),
        (grain, 0.05),
        (flash, 0.2),
    ],
    ids=["jitter", "blink", "tint", "grain", "flash"],
)
def test_flicker_is_not_motion(flicker: Change, most: float, clips: list[WorldClip]) -> None:
    """Though it changes the pixels of a frozen video more than motion changes those of a moving one."""
    changed = np.mean([np.abs(np.diff(flicker(clip, i).astype(float), axis=0)).mean() for i, clip in enumerate(clips)])
    moved = np.mean([np.abs(np.diff(clip.video.astype(float), axis=0)).mean() for clip in clips])
    assert changed > moved
    assert mean_motion(clips, flicker) < most * mean_motion(clips)


def test_flicker_does_not_hide_motion(clips: list[WorldClip]) -> None:
    flickering = mean_motion(clips, lambda clip, i: jitter_brightness(clip.video, 0.08, i))
    assert flickering == pytest.approx(mean_motion(clips), rel=0.02)


def test_saturation_moves_saturation_alone(clips: list[WorldClip]) -> None:
    stats = {s: [measure_pixels(saturate(clip.video, s)) for clip in clips] for s in (0.6, 1.0, 1.5, 2.0)}
    means = {s: np.mean([[one.saturation, one.contrast, one.motion] for one in each], 0) for s, each in stats.items()}
    for factor, (saturation, contrast, moved) in means.items():
        assert saturation / means[1.0][0] == pytest.approx(factor, rel=0.08)
        assert contrast / means[1.0][1] == pytest.approx(1.0, abs=0.05)
        assert moved / means[1.0][2] == pytest.approx(1.0, abs=0.15)  # coloured edges weigh more


def test_contrast_moves_contrast_and_not_motion(clips: list[WorldClip]) -> None:
    def flat(clip: WorldClip) -> np.ndarray:
        return (127.5 + 0.6 * (clip.video - 127.5)).round().astype(np.uint8)

    pairs = [(measure_pixels(clip.video), measure_pixels(flat(clip))) for clip in clips]
    assert all(b.contrast == pytest.approx(0.6 * a.contrast, rel=0.02) for a, b in pairs)
    assert np.sum([b.motion for _, b in pairs]) == pytest.approx(np.sum([a.motion for a, _ in pairs]), rel=0.15)


def test_fused_objects_still_move(clips: list[WorldClip]) -> None:
    """Motion is no measure of objects: fusing is the oracle's to see, and must not look like a collapse."""
    pairs = [clip for clip in clips if len(clip.scene.things) == 2]
    assert mean_motion(pairs, lambda clip, i: fuse(clip.scene, 48, 6, 0.7)) > 0.9 * mean_motion(pairs)


def test_motion_does_not_depend_on_the_resolution(clips: list[WorldClip]) -> None:
    for clip in clips:
        large = render(replace(clip.scene), 96)
        assert motion(large) == pytest.approx(motion(clip.video), rel=0.1, abs=2e-4)
