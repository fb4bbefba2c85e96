"""PyPI's `vbench`: its list of prompts, and temporal_flickering, the one dimension without weights, judged through our
path and equal to ours."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from avd.evaluation.benchmarks.known import VBENCH
from avd.evaluation.benchmarks.layout import make_layout
from avd.evaluation.benchmarks.manifest import plan_videos
from avd.evaluation.benchmarks.prompts import read_prompt_list
from avd.evaluation.rows import read_results
from avd.measures.change import temporal_flickering
from helpers.command import avd
from helpers.real_vbench import vbench_packages, vbench_python

__all__ = ["vbench_packages", "vbench_python"]

PROMPTS = ("In a still frame, a stop sign", "a toilet, frozen in time")


def decoded(path: Path) -> np.ndarray:
    """The frames as the official code decodes them, BGR."""
    frames, video = [], cv2.VideoCapture(str(path))
    while (read := video.read())[0]:
        frames.append(read[1])
    video.release()
    return np.stack(frames)


def test_the_official_list_is_laid_out_as_published(vbench_packages: Path) -> None:
    prompts = read_prompt_list(VBENCH, vbench_packages)
    layout = make_layout(prompts)
    assert layout.summary() == "946 entries, 944 prompts, 4,720 videos"
    assert layout.colliding() == [("A fantasy landscape", "a fantasy landscape")]
    assert len(layout.samples) == 16 and len(layout.files_of("temporal_flickering")) == 75 * 5
    assert len(make_layout(prompts, flickering_samples=25).files) == 6220
    assert len({video.seed for video in plan_videos(layout, 0).videos}) == 4720


def test_temporal_flickering_by_the_official_package_is_ours(vbench_python: Path, tmp_path: Path) -> None:
    info, folder = tmp_path / "info.json", tmp_path / "videos"
    info.write_text(json.dumps([{"prompt_en": prompt, "dimension": ["temporal_flickering"]} for prompt in PROMPTS]))
    suite = ("--suite", "vbench", "--suite-info", info)
    assert avd("generate", "wan-mini", *suite, "--output", folder, "--steps", 2) == 0
    choice = ("--dimensions", "temporal_flickering", "--json", tmp_path / "row.json")
    assert avd("evaluate", folder, *suite, "--vbench-python", vbench_python, *choice) == 0

    (official,) = (tmp_path / "videos.vbench" / "temporal_flickering").glob("*_eval_results.json")
    score, items = json.loads(official.read_text())["temporal_flickering"]
    ours = {path.name: temporal_flickering(decoded(path)) for path in folder.glob("*.mp4")}
    assert len(items) == len(ours) == 10 and len(set(ours.values())) == 10
    for item in items:
        assert ours[Path(item["video_path"]).name] == pytest.approx(item["video_results"], abs=1e-6)
    (row,) = read_results(tmp_path / "row.json").rows
    assert row.score("vbench", "temporal_flickering") == score == pytest.approx(np.mean([*ours.values()]), abs=1e-6)
    assert row.protocol is not None and row.protocol["package"].startswith("vbench 0.1.5, code ")
