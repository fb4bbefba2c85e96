"""`avd evaluate` of any videos and models, compared with a reference."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from avd.data import CaptionedFile, write_captions, write_video
from avd.world.damage import saturate
from helpers.command import avd
from helpers.painter import WORLD

PROMPTS = [f"prompt {i}" for i in range(10)]


def write_set(folder: Path, factor: float = 1.0, names: list[str] | None = None) -> Path:
    """Two seeds of each prompt, named as VBench does; colours `factor` times as strong."""
    for n, name in enumerate(names or [f"{prompt}-{k}" for prompt in PROMPTS for k in range(2)]):
        write_video(folder / f"{name}.mp4", saturate(WORLD.clip(n, "heldout").video, factor), 8)
    return folder


def comparison(file: Path) -> dict[str, Any]:
    (found,) = json.loads(file.read_text())["meta"]["comparisons"].values()
    return dict(found)


def test_two_folders_are_compared_clip_by_clip(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    student, teacher = write_set(tmp_path / "student", 1.5), write_set(tmp_path / "teacher")
    out = ("--json", tmp_path / "row.json", "--csv", tmp_path / "clips.csv")
    assert avd("evaluate", student, "--suite", "native", "--reference", teacher, *out) == 0
    found = comparison(tmp_path / "row.json")
    assert (found["reference"], found["pairs"]) == ("teacher", 20)
    saturation = found["measures"]["saturation"]
    assert saturation["verdict"] == "outside the limit" and 0.1 < saturation["low"] < saturation["high"]
    assert found["measures"]["motion"]["verdict"] == "within the limit"
    shown = capfd.readouterr().out
    assert "against teacher, 20 pairs of clips" in shown and " outside" in shown
    row, reference = json.loads((tmp_path / "row.json").read_text())["rows"]
    assert (row["name"], row["videos"], reference["name"]) == ("student", 20, "teacher")

    with (tmp_path / "clips.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 40 and [line["row"] for line in lines] == ["student"] * 20 + ["teacher"] * 20
    assert [line["prompt"] for line in lines[:2]] == ["prompt 0"] * 2 and lines[1]["repeat"] == "1"
    assert np.mean([float(line["saturation"]) for line in lines[:20]]) == pytest.approx(
        row["scores"]["native"]["saturation"]
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clips.csv", "row.json", "student", "teacher"]


def test_the_oracle_compares_clips_of_its_world(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for name, factor in (("student", 1.5), ("teacher", 1.0)):
        clips = [WORLD.clip(i, "heldout") for i in range(10)]
        write_set(tmp_path / name, factor, names=[str(i) for i in range(10)])
        captions = [CaptionedFile(f"{i}.mp4", clip.caption.text) for i, clip in enumerate(clips)]
        write_captions(tmp_path / name / "captions.jsonl", captions)
    command = ("evaluate", tmp_path / "student", "--clips", 10, "--json", tmp_path / "row.json")
    assert avd(*command, "--reference", tmp_path / "teacher") == 0
    found = comparison(tmp_path / "row.json")["measures"]
    assert found["saturation_signed"]["low"] > 0.05 and found["instance_preservation"]["change"] == 0.0
    assert {each["verdict"] for each in found.values()} == {None}  # the oracle's measures have goals, and no limits
    assert "student against teacher, 10 pairs of clips" in capfd.readouterr().out


def test_kept_records_are_used_for_the_next_student(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from avd.evaluation.suites.native import NativeSuite

    teacher, measured = write_set(tmp_path / "teacher"), []
    measure = NativeSuite.measure
    monkeypatch.setattr(NativeSuite, "measure", lambda *about: measured.append(about[2].text) or measure(*about))
    for i in range(2):
        student = write_set(tmp_path / f"student-{i}", 1.0 + i)
        files = ("--json", tmp_path / f"{i}.json", "--records", tmp_path / "records")
        assert avd("evaluate", student, "--suite", "native", "--reference", teacher, *files) == 0
        assert len(measured) == (40, 60)[i]


def test_sets_that_have_some_prompts_in_common_are_refused_or_compared_as_they_are(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    student = write_set(tmp_path / "student")
    teacher = write_set(tmp_path / "teacher", names=["prompt 0-0", *(f"real {i}" for i in range(6))])
    command = ("evaluate", student, "--suite", "native", "--reference", teacher, "--json", tmp_path / "row.json")
    assert avd(*command) == 2
    (line,) = capfd.readouterr().err.strip().splitlines()
    assert "19 of 20 clips of student have no partner in teacher" in line and "--unpaired" in line
    assert not (tmp_path / "row.json").exists() and not (tmp_path / "row-records").exists()
    assert avd(*command, "--unpaired") == 0
    assert comparison(tmp_path / "row.json")["pairs"] is None


def test_a_model_answers_the_prompts_of_the_videos_that_it_is_compared_with(place: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (17, 16, 16, 3), dtype=np.uint8)
    for name in ("a cat-0", "a cat-1", "a dog-0"):
        write_video(Path("videos") / f"{name}.mp4", frames, 8)
    options = ("--steps", 1, "--samples", "kept", "--csv", "clips.csv")
    assert avd("evaluate", "tiny", "--suite", "native", "--reference", "videos", "--json", "a.json", *options) == 0
    assert comparison(Path("a.json"))["pairs"] == 3
    assert avd("evaluate", "videos", "--suite", "native", "--reference", "tiny", "--json", "b.json") == 0
    assert comparison(Path("b.json"))["pairs"] == 3
    assert sorted(path.name for path in Path("kept").glob("clip-*")) == [f"clip-{i:06d}.safetensors" for i in range(3)]
    assert not list(Path().glob("*-samples*")) and not list(Path().glob("*-records"))


def test_two_models_answer_the_prompts_of_a_file(place: Path) -> None:
    Path("prompts.txt").write_text("a cat\na dog\n")
    options = ("--suite", "native", "--prompts", "prompts.txt", "--repeats", 2, "--steps", 1, "--json", "two.json")
    assert avd("evaluate", "tiny", "--reference", "tiny", *options) == 0
    found = comparison(Path("two.json"))
    assert (found["reference"], found["pairs"]) == ("tiny (reference)", 4)


def test_a_model_without_prompts_is_refused(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert avd("evaluate", "tiny", "--suite", "native", "--json", "none.json") == 2
    assert "suite native has no prompts of its own: name a file with --prompts" in capfd.readouterr().err
    assert avd("evaluate", "tiny", "--unpaired", "--json", "none.json") == 2
    assert "--unpaired is for a comparison" in capfd.readouterr().err


def test_sets_without_a_pair_and_models_that_are_missing_are_named(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    student = write_set(tmp_path / "student", names=["a-0"])
    teacher = write_set(tmp_path / "teacher", names=["b-1"])
    command = ("evaluate", student, "--suite", "native", "--json", tmp_path / "row.json", "--reference")
    assert avd(*command, "missing") == 2
    (line,) = capfd.readouterr().err.strip().splitlines()
    assert "there is no model missing" in line
    assert avd(*command, teacher) == 0
    shown = " ".join("".join(capfd.readouterr()).split())
    assert "no clip of student has a partner in teacher" in shown and "'a', repeat 0, and 'b', repeat 1" in shown
