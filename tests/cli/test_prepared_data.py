"""Runs on prepared folders: no text encoder and no VAE, prompts of their own, several caches, folders that move."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from avd.models.settings import read_settings
from avd.models.wan.model import VideoModel
from helpers.command import avd, snapshot

PROMPTS = ["a red ball drifting left", "a blue ring rising", "a green square"]
DMD = ("--set", "objective.regression.weight=0", "--set", "objective.temporal.weight=0", "--set", "monitors.every=0")


@pytest.fixture(scope="module", autouse=True)
def folders(place: Path) -> Path:
    """Two caches, one of them with a negative prompt, and a folder of prompts."""
    assert avd("world", "render", "--output", "clips", "--count", 4, "--size", 16) == 0
    assert avd("world", "render", "--output", "more", "--count", 2, "--size", 16, "--seed", 5) == 0
    assert avd("prepare", "clips", "--model", "tiny", "--output", "cache", "--negative-prompt", "gaudy") == 0
    assert avd("prepare", "more", "--model", "tiny", "--output", "cache-more") == 0
    (place / "prompts.txt").write_text("\n".join(PROMPTS))
    assert avd("prepare", "--prompts", "prompts.txt", "--model", "tiny", "--output", "prompts") == 0
    return place


def distill(output: str, *options: object) -> int:
    return avd("distill", "small.yaml", "--output", output, *options)


def state(run: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Path(run) / "checkpoints/step-0000002/state.json").read_text())
    return found


def test_training_on_a_cache_loads_neither_text_encoder_nor_vae(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []
    part = VideoModel._part

    def listed(self: VideoModel, name: str) -> Any:
        loaded.append(name)
        return part(self, name)

    monkeypatch.setattr(VideoModel, "_part", listed)
    assert distill("lean", "--data", "cache", "--set", "monitors.every=0", "--set", "training.sample_every=0") == 0
    assert not {"text_encoder", "vae"} & set(loaded)
    loaded.clear()
    shown = ("--set", "monitors.every=2", "--set", "monitors.clips=1", "--set", "training.sample_every=2")
    assert distill("watched", "--data", "cache", *shown) == 0
    assert "vae" in loaded and "text_encoder" not in loaded
    assert snapshot(Path("watched/student/transformer")) == snapshot(Path("lean/student/transformer"))


def test_a_negative_prompt_decides_what_is_learnt_and_stays_with_the_student() -> None:
    plain = ("--data", "cache", "--set", "monitors.every=0")
    assert distill("negative", *plain, "--set", "negative_prompt=gaudy") == 0
    assert distill("null", *plain) == 0
    assert snapshot(Path("negative/student/transformer")) != snapshot(Path("null/student/transformer"))
    settings = read_settings(Path("negative/student"))
    assert settings is not None and settings.negative_prompt == "gaudy"


def test_prompts_of_their_own_need_no_videos() -> None:
    assert distill("prompted", "--set", "data.prompts=prompts", *DMD) == 0
    assert state("prompted")["video_order"] is None and state("prompted")["prompt_order"]["position"] == 4
    assert distill("world", *DMD) == 0
    assert snapshot(Path("prompted/student/transformer")) != snapshot(Path("world/student/transformer"))


def test_videos_go_with_prompts_of_their_own() -> None:
    changes = ("--data", "cache", "--set", "monitors.every=0")
    assert distill("both", *changes, "--set", "data.prompts=prompts") == 0
    assert distill("captions", *changes) == 0
    assert snapshot(Path("both/student/transformer")) != snapshot(Path("captions/student/transformer"))


def test_several_caches_are_mixed_killed_and_resumed() -> None:
    mixed = ("--set", "data.caches=[{path: cache, weight: 3}, {path: cache-more}]", "--set", "monitors.every=0")
    assert distill("mixed", *mixed, "--updates", 3) == 0
    assert distill("parts", *mixed, "--updates", 1) == 0
    assert distill("parts", *mixed, "--updates", 3, "--resume") == 0
    assert snapshot(Path("parts/student")) == snapshot(Path("mixed/student"))


def test_a_cache_that_has_moved_resumes_and_another_does_not(capsys: pytest.CaptureFixture[str]) -> None:
    plain = ("--set", "monitors.every=0")
    shutil.copytree("cache", "here")
    assert distill("moving", "--data", "here", *plain) == 0
    Path("here").rename("there")
    assert distill("moving", "--data", "there", *plain, "--updates", 3, "--resume") == 0
    capsys.readouterr()
    assert distill("moving", "--data", "cache-more", *plain, "--updates", 3, "--resume") == 2
    assert "run moving began with other data (data.caches, by the content" in " ".join(capsys.readouterr().err.split())
    assert distill("moving", *plain, "--updates", 3, "--resume") == 2


def test_a_run_that_recorded_no_content_resumes_where_its_data_were(capsys: pytest.CaptureFixture[str]) -> None:
    plain = ("--set", "monitors.every=0")
    assert distill("earlier", "--data", "cache", *plain) == 0
    Path("earlier/data.json").unlink()
    shutil.copytree("cache", "copy")
    capsys.readouterr()
    assert distill("earlier", "--data", "copy", *plain, "--updates", 3, "--resume") == 2
    assert "data.cache, by the paths" in " ".join(capsys.readouterr().err.split())
    assert distill("earlier", "--data", "cache", *plain, "--updates", 3, "--resume") == 0


REFUSED = {
    "a text that is not encoded": (
        ("--set", "data.prompts=prompts.txt", *DMD),
        "data.prompts is prompts.txt, a text that is not encoded: run `avd prepare --prompts prompts.txt --model tiny "
        "--output prompts`",
    ),
    "a folder without a list": (("--set", "data.prompts=cache", *DMD), "cache, which has no list of prompts"),
    "no such folder": (("--set", "data.prompts=nowhere", *DMD), "nowhere holds no encoded texts"),
    "regression without clips": (
        ("--set", "data.prompts=prompts", "--set", "monitors.every=0"),
        "has prompts and no clips, which objective.temporal learns from",
    ),
    "monitors without clips": (
        ("--set", "data.prompts=prompts", *DMD[:4], "--set", "monitors.every=1"),
        "has prompts and no clips, which its monitors compare with",
    ),
    "prompts beside real clips with captions of their own": (
        ("--data", "cache", "--set", "data.prompts=prompts", "--set", "objective.adversarial.weight=1"),
        "has data.prompts, and objective.adversarial compares the student's clips with real ones of the same captions",
    ),
    "a discriminator without clips": (
        ("--set", "data.prompts=prompts", *DMD, "--set", "objective.adversarial.weight=1"),
        "has prompts and no clips, which objective.adversarial learns from",
    ),
    "a negative prompt that is not encoded": (
        ("--data", "cache-more", "--set", "negative_prompt=very gaudy"),
        "cache-more does not hold the encoded negative prompt 'very gaudy', which guidance needs: add it with `avd "
        "prepare --model tiny --output",
    ),
    "one cache and several": (
        ("--data", "cache", "--set", "data.caches=[{path: cache-more}]"),
        "both cache and caches",
    ),
    "a cache so rare that it is never read": (
        ("--set", "data.caches=[{path: cache, weight: 5000}, {path: cache-more}]"),
        "cache-more has the weight 1, less than a thousandth of all",
    ),
    "caches that do not go together": (
        ("--set", "data.caches=[{path: cache}, {path: cache-slow}]"),
        "cache and cache-slow cannot be mixed: their geometry is",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_data_that_cannot_be_are_refused(case: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if not (place / "cache-slow").exists():
        shutil.copytree(place / "cache-more", place / "cache-slow")
        manifest = place / "cache-slow" / "manifest.json"
        values = json.loads(manifest.read_text())
        values["geometry"]["fps"] = 4.0
        manifest.write_text(json.dumps(values))
    options, message = REFUSED[case]
    before = snapshot(place)
    assert distill("new", *options) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert snapshot(place) == before


def test_the_command_of_a_refusal_adds_what_is_lacking(capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree("cache-more", "lacking")
    options = ("--data", "lacking", "--set", "negative_prompt=not this", "--set", "monitors.every=0")
    assert distill("added", *options) == 2
    command = " ".join(capsys.readouterr().err.split()).split("`")[1]
    assert command.endswith("--negative-prompt 'not this'")
    assert avd("prepare", "--model", "tiny", "--output", "lacking", "--negative-prompt", "not this") == 0
    assert distill("added", *options) == 0
