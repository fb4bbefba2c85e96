"""The one optical flow gives the oracle and the monitors, to the bit, the numbers that each was calibrated with."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from avd.measures.optical_flow import flow_field, mean_speed, shrink
from avd.measures.video import measure_pixels, motion
from avd.world import World
from avd.world.damage import jitter_brightness, saturate
from avd.world.oracle.measures import flow_speed

CELL, DAMPING, SIDE, SPAN = 4, 0.02, 24, 4
Moment = Callable[[np.ndarray, np.ndarray], np.ndarray]


def solve(middle: np.ndarray, change: np.ndarray, moment: Moment) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    slope_y, slope_x = np.gradient(middle, axis=1), np.gradient(middle, axis=2)
    xx, yy, xy = moment(slope_x, slope_x), moment(slope_y, slope_y), moment(slope_x, slope_y)
    xt, yt = moment(slope_x, change), moment(slope_y, change)
    strength = xx + yy
    xx, yy = xx + DAMPING, yy + DAMPING
    determinant = xx * yy - xy * xy
    return (xy * yt - yy * xt) / determinant, (xy * xt - xx * yt) / determinant, strength


def overlapping(cells: np.ndarray) -> np.ndarray:
    return cells[:, :-1, :-1] + cells[:, 1:, :-1] + cells[:, :-1, 1:] + cells[:, 1:, 1:]


def oracles_flow(video: np.ndarray) -> float:
    """The formula that docs/oracle.md is calibrated with, as it was first written."""
    frames, height, width, _ = video.shape
    pixels = video[:, : height // 2 * 2, : width // 2 * 2].astype(np.float32)
    small = (pixels[:, ::2, ::2] + pixels[:, 1::2, ::2] + pixels[:, ::2, 1::2] + pixels[:, 1::2, 1::2]) / (4 * 255.0)
    change = np.diff(small, axis=0)
    change -= np.median(change.reshape(frames - 1, -1, 3), axis=1)[:, None, None]

    def moment(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        product = a * b
        frames, height, width, _ = product.shape
        rows, columns = height // CELL, width // CELL
        cells = product[:, : rows * CELL, : columns * CELL].sum(axis=-1)
        return overlapping(cells.reshape(frames, rows, CELL, columns, CELL).sum(axis=(2, 4)))

    u, v, strength = solve((small[1:] + small[:-1]) / 2, change, moment)
    speed = (np.hypot(u, v) * strength).sum() / max(float(strength.sum()), 1e-9)
    return float(speed) / min(small.shape[1:3])


def monitors_motion(video: np.ndarray) -> float:
    """The formula that runs have measured their references with, as it was first written."""
    frames, height, width, colours = video.shape
    factor = max(1, round(min(height, width) / SIDE))
    rows, columns = height // factor, width // factor
    cut = video[:, : rows * factor, : columns * factor].reshape(frames, rows, factor, columns, factor, colours)
    small = cut.mean(axis=(2, 4), dtype=np.float32) / np.float32(255.0)

    def windows(values: np.ndarray) -> np.ndarray:
        frames, height, width, colours = values.shape
        rows, columns = height // CELL, width // CELL
        cells = values[:, : rows * CELL, : columns * CELL].reshape(frames, rows, CELL, columns, CELL, colours)
        return overlapping(cells.sum(axis=(2, 4)))

    def moment(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return (windows(a * b) - windows(a) * windows(b) / (4 * CELL * CELL)).sum(axis=-1)

    def steady(values: np.ndarray) -> np.ndarray:
        return np.lib.stride_tricks.sliding_window_view(values, min(SPAN, len(values)), axis=0).mean(axis=-1)

    along_x, along_y, strength = solve((small[1:] + small[:-1]) / 2, np.diff(small, axis=0), moment)
    speed, weight = np.hypot(steady(along_x), steady(along_y)), steady(strength)
    return float((speed * weight).sum()) / max(float(weight.sum()), 1e-9) / min(small.shape[1:3])


def videos() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    clips = [World(level).clip(index, "heldout").video for level in (1, 2) for index in range(4)]
    damaged = [saturate(clips[0], 1.5), jitter_brightness(clips[1], 0.1, 0)]
    shapes = [(2, 16, 16, 3), (3, 50, 54, 3), (17, 48, 48, 3), (9, 51, 95, 3), (5, 100, 130, 3), (6, 240, 416, 3)]
    return [*clips, *damaged, *(rng.integers(0, 256, shape, dtype=np.uint8) for shape in shapes)]


@pytest.mark.parametrize("video", videos(), ids=lambda video: "x".join(map(str, video.shape)))
def test_no_number_has_moved(video: np.ndarray) -> None:
    assert flow_speed(video) == oracles_flow(video)
    assert motion(video) == monitors_motion(video)
    frames = [frame.astype(np.float32) / 255.0 for frame in video]
    high = [frame.max(axis=-1) for frame in frames]
    each = [(h - f.min(axis=-1)) / np.maximum(h, 1e-6) for h, f in zip(high, frames, strict=True)]
    stats = measure_pixels(video)
    assert stats.saturation == float(np.mean([float(values.mean()) for values in each]))
    assert stats.contrast == float(np.mean([frame.mean(axis=-1).std() for frame in frames]))


def moving(right: float, down: float, frames: int = 5) -> np.ndarray:
    """A smooth pattern that moves by so many pixels per frame, as float32 in the unit range."""
    y, x = np.mgrid[:32, :40].astype(np.float32)
    shots = []
    for n in range(frames):
        u, v = x - n * right, y - n * down
        shots.append(np.stack([np.sin(u / 3 + a) + np.cos(v / 3 + a) for a in (0, 2, 4)], -1))
    return (np.stack(shots) / 4 + 0.5).astype(np.float32)


@pytest.mark.parametrize("brightness", ["frame", "window"])
def test_displacements_have_the_sign_and_size_of_the_motion(brightness: str) -> None:
    field = flow_field(moving(0.5, -0.25), brightness)  # type: ignore[arg-type]
    assert np.average(field.x, weights=field.strength) == pytest.approx(0.5, rel=0.1)
    assert np.average(field.y, weights=field.strength) == pytest.approx(-0.25, rel=0.1)


def test_brightness_of_a_frame_moves_nothing_and_of_a_part_only_without_windows() -> None:
    still = moving(0.0, 0.0)
    brighter = still + np.linspace(0.0, 0.2, 5, dtype=np.float32)[:, None, None, None]
    assert mean_speed(brighter, "frame", 1) == pytest.approx(0.0, abs=1e-4)
    assert mean_speed(brighter, "window", 1) == pytest.approx(0.0, abs=1e-4)
    part = still.copy()
    part[1::2, :16] += 0.1
    assert mean_speed(part, "window", 1) < 0.5 * mean_speed(part, "frame", 1)


def test_shaking_is_motion_until_displacements_are_averaged() -> None:
    shaking = moving(0.5, 0.0, 2)[[0, 1, 0, 1, 0, 1, 0]]
    assert mean_speed(shaking, "window", 1) == pytest.approx(0.5, rel=0.1)
    assert mean_speed(shaking, "window", 2) == pytest.approx(0.0, abs=1e-3)


def test_a_block_becomes_its_mean_and_what_fills_none_is_cut_off() -> None:
    video = np.arange(2 * 5 * 7 * 3, dtype=np.uint8).reshape(2, 5, 7, 3)
    small = shrink(video, 3)
    assert small.shape == (2, 1, 2, 3) and small.dtype == np.float32
    assert small[1, 0, 1, 2] == pytest.approx(video[1, :3, 3:6, 2].mean() / 255)


@pytest.mark.parametrize("shape", [(1, 20, 20, 3), (4, 7, 20, 3)])
def test_there_is_no_motion_without_a_second_frame_or_a_window(shape: tuple[int, ...]) -> None:
    assert mean_speed(np.random.default_rng(0).random(shape, np.float32), "window", 1) == 0.0


@pytest.mark.parametrize(("size", "factor"), [((48, 48), 2), ((33, 50), 1), ((60, 104), 7)])
def test_a_shrunken_video_holds_the_means_of_blocks(size: tuple[int, int], factor: int) -> None:
    video = np.random.default_rng(0).integers(0, 256, (3, *size, 3), dtype=np.uint8)
    small = shrink(video, factor)
    assert small.shape == (3, size[0] // factor, size[1] // factor, 3) and small.dtype == np.float32
    row, column = small.shape[1] - 1, small.shape[2] - 2
    block = video[:, row * factor : (row + 1) * factor, column * factor : (column + 1) * factor]
    expected = block.mean(axis=(1, 2), dtype=np.float32) / np.float32(255)
    assert np.array_equal(small[:, row, column], expected)  # to the last bit: the oracle is calibrated with it
