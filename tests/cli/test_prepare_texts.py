"""`avd prepare` without videos: a folder of prompts, and what a finished cache lacks."""

from __future__ import annotations

from pathlib import Path

import pytest

from avd.data import EncodedTexts, LatentCache
from helpers.command import avd


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.txt").write_text("a red ball drifts left\n\na blue ball rises\n")


def run(command: str, capsys: pytest.CaptureFixture[str], code: int = 0) -> str:
    """What a command prints, on one line."""
    assert avd(*command.split()) == code
    captured = capsys.readouterr()
    return " ".join((captured.out + captured.err).split())


def test_prompts_are_encoded_into_a_folder_of_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert "encoded 3 texts into prompts" in run("prepare --prompts prompts.txt --output prompts", capsys)
    held = EncodedTexts(Path("prompts"))
    assert held.prompts == ["a red ball drifts left", "a blue ball rises"] and "" in held
    assert "encoded 0 texts" in run("prepare --prompts prompts.txt --output prompts", capsys)
    assert "encoded 1 texts" in run("prepare --output prompts --negative-prompt gaudy", capsys)
    held = EncodedTexts(Path("prompts"))
    assert "gaudy" in held and len(held.prompts) == 2
    shown = run("inspect prompts --verify", capsys)
    assert "prompts: 2 listed, of 4 encoded texts" in shown and "a blue ball rises" in shown and "right" in shown


def test_texts_are_added_to_a_cache_and_its_clips_stay(capsys: pytest.CaptureFixture[str]) -> None:
    run("world render --count 2 --output clips", capsys)
    run("prepare clips --output cache --prompts prompts.txt", capsys)
    before = {path.name: path.read_bytes() for path in Path("cache").rglob("shard-*")}
    assert before
    held = LatentCache("cache").texts
    assert held is not None and "" in held and len(held.prompts) == 2 and "gaudy" not in held
    run("prepare --output cache --negative-prompt gaudy", capsys)
    held = LatentCache("cache").texts
    assert held is not None and "gaudy" in held
    assert {path.name: path.read_bytes() for path in Path("cache").rglob("shard-*")} == before


@pytest.mark.parametrize(
    "option",
    ["--shard 1/8", "--captions captions.jsonl", "--windows 1", "--no-cuts", "--fps 8", "--workers 2", "--heldout a"],
)
def test_options_of_videos_are_refused_where_there_are_none(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Even if it is the default that is given."""
    shown = run(f"prepare --prompts prompts.txt --output new {option}", capsys, code=2)
    name = option.split()[0].replace("--no-cuts", "--cuts")
    assert f"{name} is an option of videos, and none are named: name their folder, or leave it out" in shown
    assert not Path("new").exists()


@pytest.mark.parametrize("command", ["prepare --prompts prompts.txt --output cache", "inspect cache"])
def test_a_cache_whose_parts_are_half_joined_is_no_folder_of_prompts(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Killed between the texts and the manifest. Its list of prompts would be lost when it is completed."""
    run("world render --count 2 --output clips", capsys)
    run("prepare clips --output cache", capsys)
    Path("cache/manifest.json").unlink()
    assert Path("cache/texts.json").exists()
    assert "the latent cache cache is unfinished: run the command that began it again" in run(command, capsys, code=2)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("prepare --output new", "new is no cache to add texts to: name a folder of videos, or prompts with --prompts"),
        ("prepare --prompts none.txt --output new", "cannot read none.txt"),
        ("prepare --prompts prompts.txt --output prompts.txt", "is a file: name a new folder for the prompts"),
        ("prepare --prompts prompts.txt --output .", "holds other files: name a new folder for the prompts"),
    ],
)
def test_what_cannot_be_is_refused(command: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in run(command, capsys, code=2)
    assert not Path("new").exists()
