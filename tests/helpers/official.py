"""Stand-ins for the official packages: they read the folder as the official code does, and score it as a test says.

They lie in a folder with a `torch` of a few lines and a Python that finds nothing else, so a process starts at once.
`Fake.say` sets what a dimension scores. What they were called with, they write down.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from avd.data.video.writing import write_clip
from avd.evaluation.benchmarks.known import find_benchmark
from avd.evaluation.benchmarks.layout import Layout, make_layout
from avd.evaluation.benchmarks.manifest import Making, Manifest, plan_videos
from avd.evaluation.benchmarks.prompts import read_prompt_list
from avd.evaluation.suites import suite_class

_TORCH = """
import os

class cuda:
    is_available = staticmethod(lambda: device_count() > 0)
    device_count = staticmethod(lambda: device_count())

def device_count():
    return int(os.environ.get("FAKE_GPUS", "0"))

def device(name):
    return name
"""

_PACKAGE = """
import fcntl, json, os, signal, time

HERE = os.path.dirname(os.path.abspath(__file__))


class {entry}:
    def __init__(self, device, info, output):
        self.device, self.info, self.output = device, info, output

    def evaluate(self, videos_path, name, dimension_list, **arguments):
        (dimension,) = dimension_list
        with open(os.path.join(HERE, "orders.json")) as file:
            order = json.load(file).get(dimension, 0.5)
        names = os.listdir(videos_path)
        suffix = os.path.splitext(names[0])[1]
        found = []
        with open(self.info) as file:
            entries = [entry for entry in json.load(file) if dimension in entry["dimension"]]
        for entry in entries:
            count = {samples} if dimension != "Diversity" else 20
            wanted = [entry["prompt_en"][:{length}] + "-" + str(i) + suffix for i in range(count)]
            found += [[file for file in wanted if file in names]]
        with open(os.path.join(HERE, "calls.jsonl"), "a") as file:
            call = {{"dimension": dimension, "device": self.device, "arguments": arguments, "work": os.listdir(),
                    "own": os.path.exists(os.path.join(os.path.basename(HERE), "__init__.py")),
                    "gpu": os.environ.get("CUDA_VISIBLE_DEVICES"), "ranks": "RANK" in os.environ, "files": names}}
            file.write(json.dumps(call) + "\\n")
        unjudged = order.get("unjudged", 0) if isinstance(order, dict) else 0
        open("piece-of-" + names[0], "w").close()
        open(os.path.join(videos_path, "left.png"), "w").close()
        if isinstance(order, dict):
            order = self.obey(order)
        if dimension == "Diversity":
            found = [files[:1] for files in found]
        paths = [os.path.join(videos_path, file) for files in found for file in files]
        items = [{{"video_path": path, "video_results": order}} for path in paths]
        for item in items[:unjudged]:
            item["video_results"] = -1
        with open(os.path.join(self.output, name + "_eval_results.json"), "w") as file:
            json.dump({{dimension: [order, items]}}, file)

    def obey(self, order):
        if "meet" in order:
            self.meet(order["meet"])
        if "kill_parent" in order:
            held = open(os.path.join(HERE, "alive"), "w")
            fcntl.flock(held, fcntl.LOCK_EX)
            os.kill(os.getppid(), getattr(signal, order["kill_parent"]))
            time.sleep(60)
            open(os.path.join(HERE, "survived"), "w").close()
        if "raise" in order:
            raise RuntimeError(order["raise"])
        return order.get("score", float("nan"))

    def meet(self, count):
        gpu = os.path.join(HERE, "gpu-" + os.environ["CUDA_VISIBLE_DEVICES"])
        os.close(os.open(gpu, os.O_CREAT | os.O_EXCL))
        for _ in range(3000):
            if len([name for name in os.listdir(HERE) if name.startswith("gpu-")]) >= count:
                break
            time.sleep(0.01)
        else:
            raise RuntimeError("no other process came")
        open(os.path.join(HERE, "met-" + os.path.basename(gpu)), "w").close()
        for _ in range(3000):
            if len([name for name in os.listdir(HERE) if name.startswith("met-")]) >= count:
                break
            time.sleep(0.01)
"""

_FILTER = """
import os, shutil


def register_subparsers(subparsers):
    parser = subparsers.add_parser("static_filter")
    parser.add_argument("--videos_path")
    parser.add_argument("--result_path")
    parser.set_defaults(func=choose)


def choose(arguments):
    target = os.path.join(arguments.result_path, "filtered_videos")
    os.makedirs(target)
    for name in os.listdir(arguments.videos_path):
        prompt, _, number = name[:-4].rpartition("-")
        if number in ("7", "24"):
            chosen = f"{prompt}-{('7', '24').index(number)}.mp4"
            shutil.copy(os.path.join(arguments.videos_path, name), os.path.join(target, chosen))
"""
"""Finds that videos 7 and 24 of each prompt are still."""


@dataclass(frozen=True)
class Fake:
    """A folder with stand-ins of both official packages."""

    folder: Path

    @property
    def python(self) -> Path:
        """A Python that starts at once: without the packages of this one."""
        return self.folder / "bin" / "python"

    def say(self, suite: str, **orders: Any) -> None:
        """What dimensions score: a number, or {"score": ...} with what else it is to do."""
        path = self.folder / suite / "orders.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **orders}))

    def calls(self, suite: str) -> list[dict[str, Any]]:
        """What the package was called with, call by call."""
        path = self.folder / suite / "calls.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    folder = tmp_path / "official"
    for suite, entry, samples, length in (("vbench", "VBench", 5, ""), ("vbench2", "VBench2", 3, "180")):
        (folder / suite).mkdir(parents=True)
        (folder / suite / "__init__.py").write_text(_PACKAGE.format(entry=entry, samples=samples, length=length))
        (folder / suite / "orders.json").write_text("{}")
    (folder / "vbench" / "cli").mkdir()
    (folder / "vbench" / "cli" / "static_filter.py").write_text(_FILTER)
    (folder / "vbench" / "utils.py").write_text(
        "def init_submodules(dimensions): assert dimensions == ['dynamic_degree']"
    )
    (folder / "torch.py").write_text(_TORCH)
    (folder / "bin").mkdir()
    made = Fake(folder)
    made.python.write_text(f'#!/bin/sh\nPYTHONPATH="{folder}" exec "{sys.executable}" -S "$@"\n')
    made.python.chmod(0o755)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return made


def write_info(path: Path, suite: str) -> Path:
    """A cut-down list of prompts: one per dimension, but for one that serves three dimensions of VBench."""
    names = [each.name for each in suite_class(suite).scoring.dimensions]  # type: ignore[attr-defined]
    shared = {"subject_consistency", "dynamic_degree", "motion_smoothness"}
    entries = [{"prompt_en": f"a test of {name}", "dimension": [name]} for name in names if name not in shared]
    if suite == "vbench":
        entries.append({"prompt_en": "a dog runs", "dimension": sorted(shared)})
    path.write_text(json.dumps(entries))
    return path


def write_videos(folder: Path, suite: str, info: Path, **changes: Any) -> None:
    """All videos of a benchmark, each of the same frames, and the manifest of a model that made them."""
    write_manifest(folder, suite, info, **changes)
    write_planned(folder, np.random.default_rng(0).integers(0, 255, (changes.get("frames", 8), 32, 48, 3), np.uint8))


def write_planned(folder: Path, frames: np.ndarray) -> None:
    """The videos of the manifest of `folder`, all of these frames, each with what `avd generate` says of its making."""
    manifest = Manifest.read(folder)
    assert manifest is not None
    about = {"avd": "0", "model": "m", "identity": manifest.making.identity, **manifest.making.sampler}
    for video in manifest.plan.videos:
        first, *others = (folder / name for name in video.files)
        first.parent.mkdir(parents=True, exist_ok=True)
        write_clip(first, frames, 16, json.dumps({"prompt": video.text, "seed": video.seed, **about}))
        for other in others:
            other.parent.mkdir(exist_ok=True)
            os.link(first, other)


def write_manifest(
    folder: Path, suite: str, info: Path, flickering_samples: int | None = None, **changes: Any
) -> Layout:
    """The manifest of videos that a few-step model made, but for `changes`; returns the names of the videos."""
    prompts = read_prompt_list(find_benchmark(suite), info)
    layout = make_layout(prompts, flickering_samples=flickering_samples)
    values = {"model": "miniature", "identity": "abc", "sampler": {"timesteps": [999, 757, 522, 255]}}
    making = Making(**{**values, "frames": 8, "height": 32, "width": 48, "fps": 16.0, "model_fps": 8.0, **changes})
    Manifest(plan_videos(layout, 0), making).write(folder)
    return layout


def command(fake: Fake, folder: Path, suite: str, info: Path, json_file: Path, *more: object) -> list[object]:
    """`avd evaluate` of a folder by the stand-ins."""
    options = ("--vbench-python", fake.python, "--suite-info", info, "--json", json_file)
    return ["evaluate", folder, "--suite", suite, *options, *more]


@pytest.fixture
def ready(tmp_path: Path, fake: Fake) -> tuple[Fake, Path, Path]:
    """The stand-ins, a list of prompts of VBench, and a folder with its videos."""
    info = write_info(tmp_path / "info.json", "vbench")
    write_videos(tmp_path / "student", "vbench", info)
    return fake, info, tmp_path / "student"
