"""All measures of a clip: the parts they are made of, what is refused, and what they cost."""

from __future__ import annotations

import tracemalloc
from dataclasses import asdict

import cv2
import numpy as np
import pytest

from avd.measures import clip as clips
from avd.measures.change import temporal_flickering
from avd.measures.clip import clip_refusal, measure_clip
from avd.measures.colour import clipped_share
from avd.measures.video import measure_pixels
from avd.types import UserError
from avd.world import World


@pytest.fixture(scope="module")
def video() -> np.ndarray:
    return World(2).clip(0, "heldout").video


def test_what_others_measure_too_is_the_same_number(video: np.ndarray) -> None:
    measures, stats = measure_clip(video, 8.0), measure_pixels(video)
    assert measures.saturation == stats.saturation
    assert measures.contrast == pytest.approx(stats.contrast, rel=1e-6)  # that mean is in single precision
    assert measures.motion == stats.motion
    assert measures.temporal_flickering == temporal_flickering(video)
    assert measures.clipped_share == pytest.approx(clipped_share(video))


def test_the_values_of_a_red_and_a_black_half() -> None:
    video = np.zeros((5, 32, 32, 3), np.uint8)
    video[:, :, 16:, 0] = 204
    measures = asdict(measure_clip(video, 8.0))
    assert measures == pytest.approx(
        {
            "saturation": 0.5,
            "saturated_share": 0.5,
            "clipped_share": 1.0,  # green and blue are 0
            "colourfulness": 1.3 * (102**2 + 51**2) ** 0.5,  # rg is 204 in one half, yb 102, and so are their means
            "contrast": 204 / 255 / 3 / 2,
            "sharpness": 0.0,  # along the other axis there is no detail
            "temporal_flickering": 1.0,
            "temporal_variance": 0.0,
            "motion": 0.0,
            "motion_smoothness_dis": 1.0,
            "dynamic_degree_dis": 0.0,
            "dynamic_level_dis": 0.0,
        },
        abs=1e-6,
    )


def test_frames_that_alternate_by_a_fifth_are_predicted_wrongly_by_a_fifth() -> None:
    video = np.full((9, 32, 32, 3), 100, np.uint8)
    video[1::2] += 51
    measures = measure_clip(video, 8.0)
    assert measures.motion_smoothness_dis == pytest.approx(0.8) == measures.temporal_flickering
    assert measures.temporal_variance == pytest.approx(0.2**2 * (4 / 9) * (5 / 9))
    assert measures.dynamic_level_dis == measures.motion == 0.0


@pytest.mark.parametrize(("pixels", "fps", "apart"), [(1, 8.0, 1), (5, 8.0, 1), (2, 16.0, 2), (1, 30.0, 4)])
def test_a_pan_has_the_level_of_its_speed_and_is_smooth(pixels: int, fps: float, apart: int) -> None:
    rough = np.random.default_rng(0).integers(0, 256, (20, 40, 3), dtype=np.uint8)
    wide = cv2.resize(rough, (320, 160), interpolation=cv2.INTER_CUBIC)
    measures = measure_clip(np.stack([wide[:, pixels * n : pixels * n + 200] for n in range(17)]), fps)
    level = pixels * apart / (6 * 160 / 256)
    assert measures.dynamic_level_dis == pytest.approx(level, rel=0.1)
    assert measures.dynamic_degree_dis == float(level > 1)
    assert 1 - measures.motion_smoothness_dis < 0.2 * (1 - measures.temporal_flickering)


@pytest.mark.parametrize(("fps", "flows"), [(8.0, 16 + 8), (16.0, 8), (24.0, 5 + 8)])
def test_each_flow_is_computed_once(fps: float, flows: int, video: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    """In 17 frames, 8 pairs surround a frame that is predicted; at 16 fps dynamic degree needs just these."""
    calls = []

    def counted(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        calls.append(1)
        return original(a, b)

    original = clips.dense_flow
    monkeypatch.setattr(clips, "dense_flow", counted)
    measure_clip(video, fps)
    assert len(calls) == flows


@pytest.mark.parametrize(
    ("shape", "fps", "reason"),
    [
        ((2, 48, 48), 8.0, "2 frames at 8 fps: dynamic degree needs at least 3"),
        ((8, 48, 48), 30.0, "8 frames at 30 fps: dynamic degree needs at least 9"),
        ((9, 15, 48), 8.0, "frames of 15 x 48 pixels: optical flow needs at least 16 per side"),
        ((9, 48, 48), 0.0, "0 frames per second: a clip needs a rate above 0"),
        ((9, 48, 48), float("nan"), "nan frames per second: a clip needs a rate above 0"),
    ],
)
def test_what_cannot_be_measured_is_refused(shape: tuple[int, int, int], fps: float, reason: str) -> None:
    assert clip_refusal(*shape, fps) == reason
    with pytest.raises(UserError, match=reason):
        measure_clip(np.zeros((*shape, 3), np.uint8), fps)


@pytest.mark.parametrize(("shape", "fps"), [((3, 16, 16), 8.0), ((3, 16, 200), 1.0), ((5, 31, 17), 16.0)])
def test_the_smallest_that_is_not_refused_has_measures(shape: tuple[int, int, int], fps: float) -> None:
    assert clip_refusal(*shape, fps) is None
    noise = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    assert np.isfinite(list(asdict(measure_clip(noise, fps)).values())).all()


def test_memory_does_not_grow_with_the_frames() -> None:
    """But for thumbnails, a hundredth of the clip. OpenCV's own buffers are not traced; they are of one pair."""

    def peak(frames: int) -> int:
        video = np.zeros((frames, 240, 320, 3), np.uint8)
        tracemalloc.start()
        measure_clip(video, 8.0)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    few, many = peak(4), peak(20)
    assert many - few < 240 * 320 * 3 * 4, "sixteen more frames cost less than one in floats"
