"""`avd generate --suite`: the videos of cut-down benchmarks, by two processes that are killed and resumed."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from avd.data import read_video
from avd.evaluation.benchmarks.check import check_folder
from avd.evaluation.benchmarks.known import find_benchmark
from avd.evaluation.benchmarks.layout import make_layout
from avd.evaluation.benchmarks.manifest import Manifest
from avd.evaluation.benchmarks.prompts import read_prompt_list
from avd.models.settings import SETTINGS_FILE
from avd.sampling.generation import read_description
from helpers.benchmarks import LONG, write_infos
from helpers.command import avd, snapshot
from helpers.killing import before, before_rename_to, in_forks
from helpers.tiny import tiny_model


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `infos`, and the model `student`."""
    folder = tmp_path_factory.mktemp("place")
    write_infos(folder / "infos")
    tiny_model().save(folder / "student", student_timesteps=(1000, 500))
    return folder


def words(place: Path, suite: str, output: Path, model: str = "wan-mini", *more: object) -> list[object]:
    steps = ("--steps", 1) if model == "wan-mini" else ()
    options = ("--suite", suite, "--suite-info", place / "infos", "--output", output)
    return ["generate", model if model == "wan-mini" else place / model, *options, *steps, *more]


def as_rank(rank: int, command: list[object], moment: Callable[[], None] = lambda: None) -> Callable[[], int]:
    """The command as one of two processes of torchrun, which ends at a moment."""

    def work() -> int:
        launch = {"WORLD_SIZE": 2, "RANK": rank, "LOCAL_RANK": rank}
        os.environ.update({key: str(value) for key, value in launch.items()})
        moment()
        return avd(*command)

    return work


MOMENTS: dict[str, tuple[Callable[[], None], Callable[[], None]]] = {
    "vbench": (
        lambda: before_rename_to("a blue circle-2.mp4"),
        lambda: before_rename_to("a red square-4.mp4"),
    ),
    "vbench2": (
        lambda: before(os, "link", 2),
        lambda: before_rename_to(f"{LONG[:180]}-1.mp4"),
    ),
}
"""When the first and the second process are killed: before the name of a video is there, or one of its other names."""


@pytest.mark.parametrize("suite", MOMENTS)
def test_two_processes_killed_and_resumed_make_the_folder_of_one(suite: str, place: Path, tmp_path: Path) -> None:
    output, alone = tmp_path / "videos", tmp_path / "alone"
    command = words(place, suite, output)
    killed = in_forks([as_rank(rank, command, moment) for rank, moment in enumerate(MOMENTS[suite])])
    assert killed == [-signal.SIGKILL] * 2
    layout = make_layout(read_prompt_list(find_benchmark(suite), place / "infos"))
    there = [name for name in layout.files if (output / name).exists()]
    assert 0 < len(there) < len(layout.files) and list(output.rglob("*.writing"))
    assert in_forks([as_rank(rank, command) for rank in range(2)]) == [0, 0]
    assert avd(*words(place, suite, alone)) == 0
    assert snapshot(output) == snapshot(alone)
    check_folder(layout, output)
    manifests = [Manifest.read(folder) for folder in (output, alone)]
    assert manifests[0] is not None and manifests[0] == manifests[1]
    assert manifests[0].making.sampler["negative_prompt"] == "" and manifests[0].making.model == "wan-mini"
    for video in manifests[0].plan.videos:
        about = read_description(output / video.files[0])
        assert about is not None and (about["prompt"], about["seed"]) == (video.text, video.seed)
    assert read_video(output / layout.files[0]).fps == 16


def test_a_video_can_be_made_alone_by_its_seed(place: Path, tmp_path: Path) -> None:
    tiny_model().save(tmp_path / "student", student_timesteps=(1000, 500))
    settings = tmp_path / "student" / SETTINGS_FILE
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "fps": 16}))  # as the files have
    assert avd(*words(place, "vbench", tmp_path / "videos", str(tmp_path / "student"))) == 0
    manifest = Manifest.read(tmp_path / "videos")
    assert manifest is not None
    video = manifest.plan.videos[7]
    alone = ("--prompt", video.text, "--seed", video.seed, "--output", tmp_path / "alone.mp4")
    assert avd("generate", tmp_path / "student", *alone) == 0
    assert (tmp_path / "alone.mp4").read_bytes() == (tmp_path / "videos" / video.files[0]).read_bytes()


def test_rewritten_prompts_are_sampled_under_the_names_of_the_originals(
    place: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "list.txt").write_text(f"a blue circle\na red square\n{LONG}\n")
    (tmp_path / "new.txt").write_text("a blue circle rises\na red square rests\na red circle rests\n")
    rewritten = ("--rewritten", tmp_path / "new.txt", "--originals", tmp_path / "list.txt")
    command = words(place, "vbench2", tmp_path / "videos", "student")
    assert avd(*command, *rewritten) == 0
    manifest = Manifest.read(tmp_path / "videos")
    assert manifest is not None and len(manifest.plan.prompts) == 64
    assert {video.prompt: video.text for video in manifest.plan.videos}[LONG] == "a red circle rests"
    about = read_description(tmp_path / "videos" / "Human_Anatomy" / "a blue circle-2.mp4")
    assert about is not None and about["prompt"] == "a blue circle rises"
    capfd.readouterr()
    assert avd(*command) == 2
    assert 'filled with prompts "' in capfd.readouterr().err


def test_what_is_made_is_named_before(place: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert avd(*words(place, "vbench", tmp_path / "videos", "student", "--flickering-samples", 7)) == 0
    first = capfd.readouterr().err.splitlines()
    assert first[0] == "VBench: 5 entries, 4 prompts, 22 videos"
    assert first[1].startswith("names that differ in case alone: 'A blue circle' and 'a blue circle'")
    assert first[2].endswith("student makes 8 frames per second; the files play them at 16")


MISTAKES = {
    "no list": (
        "--suite vbench",
        "--suite vbench needs --suite-info: name VBench_full_info.json of the package vbench",
    ),
    "no suite": ("--suite-info infos", "options of a benchmark are given and none is named: add --suite vbench"),
    "not a benchmark": ("--suite world --suite-info infos", "suite 'world' is no benchmark"),
    "a list elsewhere": ("--suite vbench --suite-info nowhere", "there is no nowhere: name VBench_full_info.json"),
    "a prompt beside": ("--suite vbench --suite-info infos --prompt x", "vbench has its own prompts and counts"),
    "a count beside": ("--suite vbench --suite-info infos --count 2", "vbench has its own prompts and counts"),
    "originals alone": (
        "--suite vbench --suite-info infos --originals infos/vbench/VBench_full_info.json",
        "--originals is given without --rewritten",
    ),
    "too few samples": ("--suite vbench --suite-info infos --flickering-samples 2", "at least 5 samples, and 2 are"),
    "samples of none": ("--suite vbench2 --suite-info infos --flickering-samples 25", "has no temporal_flickering"),
    "a file": ("--suite vbench --suite-info infos --output new.mp4", "a benchmark's videos need a folder"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_before_anything(
    mistake: str, place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    options, message = MISTAKES[mistake]
    before_it = snapshot(place)
    assert avd("generate", "no-model", "--output", "new", *options.split()) == 2
    shown = capfd.readouterr().err
    assert message in shown and len(shown.splitlines()) == 1
    assert snapshot(place) == before_it


def test_a_list_of_prompts_that_is_none_is_one_line(
    place: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "VBench_full_info.json").write_text(json.dumps([{"prompt_en": "a/b", "dimension": ["color"]}]))
    command = ("--suite", "vbench", "--suite-info", tmp_path, "--output", tmp_path / "videos")
    assert avd("generate", place / "student", *command) == 2
    shown = capfd.readouterr().err
    assert "no file can be named by the prompt 'a/b'" in shown and len(shown.splitlines()) == 1
