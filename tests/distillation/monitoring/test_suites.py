"""What the monitors' suites make of videos: records, their means, and how much the seeds of a prompt differ."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest

from avd.distillation.monitoring.suites import MonitorSuite, NativeMonitorSuite, PixelMonitorSuite
from avd.measures.clip import measure_clip
from avd.measures.diversity import Signature, appearance_distance, motion_distance, signature

NATIVE, PIXELS = NativeMonitorSuite(8.0), PixelMonitorSuite()


def moving(step: float, seed: int = 0) -> np.ndarray:
    """A uint8 video (9, 32, 32, 3) of smooth noise that moves right by `step` pixels per frame."""
    pattern = np.random.default_rng(seed).normal(size=(32, 8, 3))
    waves = np.cos(2 * np.pi * np.outer(np.arange(8) + 1, np.arange(32)) / 32 / 2 + np.arange(8)[:, None])
    frames = [np.einsum("ykc,kx->yxc", pattern, np.roll(waves, round(t * step), axis=1)) for t in range(9)]
    return np.clip(128 + 30 * np.stack(frames), 0, 255).astype(np.uint8)


VIDEOS = [moving(1), moving(2, seed=1), moving(0, seed=2), moving(3, seed=3), moving(2, seed=4)]


def test_what_both_suites_measure_is_the_same() -> None:
    records = {suite.name: [suite.measure(video) for video in VIDEOS] for suite in (PIXELS, NATIVE)}
    for pixels, native in zip(records["pixels"], records["native"], strict=True):
        assert pixels == pytest.approx({name: native[name] for name in PIXELS.measures}, rel=1e-6)
    few, many = PIXELS.summarise(records["pixels"], []), NATIVE.summarise(records["native"], [])
    assert few == pytest.approx({name: many[name] for name in few}, rel=1e-6)
    assert many["sharpness"] == pytest.approx(np.mean([measure_clip(video, 8.0).sharpness for video in VIDEOS]))


@pytest.mark.parametrize("suite", [PIXELS, NATIVE], ids=lambda suite: suite.name)
def test_a_record_survives_json_and_less_is_none(suite: MonitorSuite) -> None:
    record = suite.measure(VIDEOS[0])
    line = json.loads(json.dumps({"clip": 3, **record}))
    assert json.dumps(suite.read(line)) == json.dumps(record)
    for key in record:
        with pytest.raises(KeyError):
            suite.read({name: value for name, value in line.items() if name != key})
        with pytest.raises(TypeError):
            suite.read({**line, key: None})


def test_diversity_is_the_mean_distance_of_the_videos_of_a_prompt() -> None:
    """Two prompts of three seeds; the further ones count for nothing else."""
    videos = [*VIDEOS[:2], VIDEOS[2], VIDEOS[3], VIDEOS[4], VIDEOS[0]]
    records, groups = [NATIVE.measure(video) for video in videos], [[0, 2, 3], [1, 4, 5]]
    found, signatures = NATIVE.summarise(records, groups), [signature(video) for video in videos]
    pairs = [(0, 2), (0, 3), (2, 3), (1, 4), (1, 5), (4, 5)]
    for name, distance in (("appearance", appearance_distance), ("motion", motion_distance)):
        expected = np.mean([distance(signatures[a], signatures[b]) for a, b in pairs])
        assert found[f"diversity_{name}"] == pytest.approx(expected) and expected > 0
    means = NATIVE.summarise(records[:2], [])
    assert {name: found[name] for name in means} == means and not any("diversity" in name for name in means)


def test_seeds_that_are_all_alike_have_no_diversity() -> None:
    record = NATIVE.measure(VIDEOS[1])
    found = NATIVE.summarise([record] * 3, [[0, 1, 2]])
    assert found["diversity_appearance"] == found["diversity_motion"] == 0.0
    assert Signature(**record["signature"]) == Signature(**asdict(signature(VIDEOS[1])))


def test_scores_whose_best_is_1_are_compared_by_what_they_lack() -> None:
    assert NATIVE.ratio("temporal_flickering", 0.94, 0.98) == pytest.approx(3.0)
    assert NATIVE.ratio("motion_smoothness_dis", 0.99, 0.98) == pytest.approx(0.5)
    assert NATIVE.ratio("sharpness", 0.94, 0.47) == pytest.approx(2.0)
    assert np.isnan(NATIVE.ratio("temporal_flickering", 0.9, 1.0)) and np.isnan(NATIVE.ratio("motion", 0.9, 0.0))


def test_the_score_is_made_of_ratios_that_there_are() -> None:
    measures = {*NATIVE.measures, "diversity_appearance"}
    assert set(PIXELS.scored) < set(NATIVE.scored)
    for suite, known in ((PIXELS, set(PIXELS.measures)), (NATIVE, measures)):
        ends = [name.removesuffix("_to_real").removesuffix("_to_teacher") for name in suite.scored]
        assert set(ends) <= known and not set(ends) & set(suite.scored)
