"""All the way on real video files: render, prepare, distil, generate, evaluate."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from avd.data import LatentCache, read_video
from avd.engine.sources import encode_world, world_of
from avd.evaluation.rows import Row, read_results
from avd.models.family import load_model
from avd.models.wan.model import VideoModel
from helpers.command import avd, snapshot

CLIPS = 4


@pytest.fixture(scope="module")
def clips(place: Path) -> Path:
    assert avd("world", "render", "--output", "clips", "--count", CLIPS, "--size", 16) == 0
    return place / "clips"


@pytest.fixture(scope="module")
def cache(place: Path, clips: Path) -> Path:
    assert avd("prepare", "clips", "--captions", "clips/captions.jsonl", "--model", "tiny", "--output", "cache") == 0
    return place / "cache"


@pytest.fixture(scope="module")
def student(place: Path, cache: Path) -> Path:
    changes = ("--set", "rollout.half_rate_stages=2", "--seed", 3)
    assert avd("distill", "small.yaml", "--data", "cache", "--output", "run", *changes) == 0
    return place / "run" / "student"


def only_row(file: str) -> Row:
    (row,) = read_results(Path(file)).rows
    return row


def test_clips_are_videos_with_captions(clips: Path) -> None:
    entries = [json.loads(line) for line in (clips / "captions.jsonl").read_text().splitlines()]
    assert [entry["file"] for entry in entries] == [f"{i:06d}.mp4" for i in range(CLIPS)]
    assert all(entry["caption"] for entry in entries)
    for entry in entries:
        video = read_video(clips / entry["file"])
        assert video.frames.shape == (17, 16, 16, 3) and video.fps == 8


def test_the_splits_differ_and_a_seed_repeats(clips: Path) -> None:
    assert avd("world", "render", "--output", "again", "--count", CLIPS, "--size", 16) == 0
    assert avd("world", "render", "--output", "heldout", "--count", CLIPS, "--size", 16, "--heldout") == 0
    assert snapshot(Path("again")) == snapshot(clips)
    assert not set(snapshot(Path("heldout")).values()) & set(snapshot(clips).values())


def test_the_cache_holds_the_clips(cache: Path, clips: Path) -> None:
    held = LatentCache(cache)
    assert held.latent_shape == (12, 5, 2, 2)
    assert [item.file for item in held.items] == [f"{i:06d}.mp4" for i in range(CLIPS)]
    before = snapshot(cache)
    assert avd("prepare", clips, "--captions", clips / "captions.jsonl", "--model", "tiny", "--output", cache) == 0
    assert snapshot(cache) == before


def test_the_cache_is_described_and_shown(cache: Path, capfd: pytest.CaptureFixture[str]) -> None:
    capfd.readouterr()
    assert avd("inspect", cache, "--model", "tiny", "--sheet", "sheet.png", "--verify") == 0
    printed = capfd.readouterr().out
    for words in (
        "4 clips",
        "17 frames of 16 x 16 at 8 fps",
        "12 x 5 x 2 x 2",
        "checksums right",
        "skipped   none",
        "4, 1 to 1 clips",
    ):
        assert words in printed
    assert LatentCache(cache).captions[0] in printed and "saturation" in printed
    assert Image.open("sheet.png").width > 16


def test_a_cache_is_read_in_full_only_if_that_is_asked(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    digest, read = hashlib.file_digest, []

    def counted(file: Any, name: str) -> Any:
        read.append(Path(file.name).name)
        return digest(file, name)

    monkeypatch.setattr(hashlib, "file_digest", counted)
    assert avd("inspect", cache) == 0 and read == []
    assert "checksums not compared: --verify reads everything" in capfd.readouterr().out
    assert avd("inspect", cache, "--verify") == 0 and "shard-00000.safetensors" in read


@pytest.mark.parametrize("damage", ["missing", "cut short"])
def test_a_file_that_is_not_all_there_is_found_without_reading_everything(
    damage: str, cache: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(cache, damage)
    (shard, *_) = sorted(Path(damage).rglob("shard-*.safetensors"))
    if damage == "missing":
        shard.unlink()
    else:
        shard.write_bytes(shard.read_bytes()[:-1])
    assert avd("inspect", damage) == 2
    assert f"cannot read the shard {shard}" in capfd.readouterr().err


def test_a_changed_byte_is_found(cache: Path, capfd: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(cache, "changed")
    shard = Path("changed/part-00000/shard-00000.safetensors")
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    assert avd("inspect", "changed", "--verify") == 2
    assert "shard-00000.safetensors has changed" in capfd.readouterr().err
    assert avd("inspect", "changed") == 0


def test_bad_files_are_skipped_and_named(clips: Path, capfd: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(clips, "mixed")
    Path("mixed/000001.mp4").write_bytes(b"no video")
    Path("mixed/000002.mp4").unlink()
    assert avd("prepare", "mixed", "--captions", "mixed/captions.jsonl", "--model", "tiny", "--output", "few") == 0
    printed = capfd.readouterr().err
    assert "kept 2 clips of 2 files: 4 s of their 4 s of video" in printed
    assert "skipped 1: unreadable, such as 000001.mp4: cannot be decoded" in printed
    assert "skipped 1: no such file, such as 000002.mp4" in printed and "few/skipped.jsonl" in printed
    skipped = [json.loads(line)["file"] for line in Path("few/skipped.jsonl").read_text().splitlines()]
    assert skipped == ["000001.mp4", "000002.mp4"]
    assert len(LatentCache("few")) == 2


def test_what_is_asked_of_videos_is_printed_and_can_be_changed(
    clips: Path, cache: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    command = ("prepare", clips, "--model", "tiny", "--workers", 0, "--output")
    assert avd(*command, "strict", "--min-size", 17) == 2
    printed = capfd.readouterr().err
    assert "asked of videos: min-fps 0, min-size 17, min-kept 0.125, min-motion 0, max-black 0.1, no-cuts" in printed
    assert "(4 too small)" in printed and not Path("strict").exists()
    assert avd(*command, "from-the-middle", "--skip-start", 0.125, "--frames", 9, "--windows", 5, "--spread") == 0
    assert [item.start for item in LatentCache("from-the-middle").items] == [0.5] * CLIPS
    manifest = json.loads(Path("from-the-middle/manifest.json").read_text())
    assert manifest["spread"] and manifest["skip_start"] == 0.125 and not manifest["checks"]["cuts"]
    assert avd("inspect", "from-the-middle") == 0
    assert "of frames show what the one before shows" in capfd.readouterr().out


def test_preparation_resumes_where_it_was_interrupted(
    clips: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def interrupt(self: VideoModel, frames: np.ndarray) -> None:
        raise KeyboardInterrupt

    command = ("prepare", clips, "--captions", clips / "captions.jsonl", "--model", "tiny", "--output", "halted")
    with monkeypatch.context() as patch:
        patch.setattr(VideoModel, "encode_video", interrupt)
        assert avd(*command) == 130
    assert "interrupted: run the same command to continue from here" in capfd.readouterr().err
    assert not multiprocessing.active_children()
    assert avd("distill", "small.yaml", "--data", "halted", "--output", "early") == 2  # the cache is unfinished
    assert avd(*command) == 0
    assert snapshot(Path("halted")) == snapshot(cache)


def test_a_cache_is_close_to_what_is_encoded_in_memory(place: Path) -> None:
    assert avd("world", "render", "--output", "large", "--count", 3) == 0
    assert avd("prepare", "large", "--model", "wan-mini", "--output", "mini", "--workers", 0) == 0
    model = load_model("wan-mini")
    expected, held = encode_world(model, world_of(model.settings, 0, "wan-mini"), 3), LatentCache("mini")
    assert held.captions == list(expected.captions)
    ours, theirs = (source.prompts(range(3))["embedding"] for source in (held, expected))
    torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-3)
    latents, truth = held.latents(range(3)), expected.latents(range(3))
    # What H.264 and half precision change is little beside what the clips differ by.
    assert (latents - truth).square().mean() < 0.01 * truth.var(dim=0).mean()


def test_several_ways_in_give_the_same_clips(clips: Path, cache: Path, capfd: pytest.CaptureFixture[str]) -> None:
    entries = [json.loads(line) for line in (clips / "captions.jsonl").read_text().splitlines()]
    with tarfile.open("clips.tar", "w") as tar:
        for entry in entries:
            tar.add(clips / entry["file"], entry["file"])
            Path("caption.txt").write_text(entry["caption"])
            tar.add("caption.txt", str(Path(entry["file"]).with_suffix(".txt")))
    Path("judged.txt").write_text(entries[1]["caption"].upper() + "!\n")
    options = ("--dtype", "bfloat16", "--heldout", "judged.txt", "--workers", 2, "--windows", 3)
    assert avd("prepare", "clips.tar", "--model", "tiny", "--output", "of-tar", *options) == 0
    printed = capfd.readouterr().err
    assert f"warning: 1 of 4 different captions are prompts of judged.txt, such as: {entries[1]['caption']}" in printed
    held, expected = LatentCache("of-tar"), LatentCache(cache)
    assert held.captions == expected.captions
    everything = range(CLIPS)
    torch.testing.assert_close(held.latents(everything), expected.latents(everything), atol=0.02, rtol=0.02)


def test_the_run_says_which_cache_it_learnt_from(student: Path, cache: Path) -> None:
    assert f"cache: {cache}" in (student.parent / "recipe.yaml").read_text()


@pytest.mark.parametrize("rate", ["--full-rate", "--half-rate"])
def test_a_student_makes_videos(rate: str, student: Path, tmp_path: Path) -> None:
    def generate(name: str, *options: object) -> list[np.ndarray]:
        file = tmp_path / name / "video.mp4"
        assert avd("generate", student, "--prompt", "one red ball", "--output", file, rate, *options) == 0
        return [read_video(path).frames for path in sorted(file.parent.iterdir())]

    (first,) = generate("first", "--seed", 1)
    assert first.shape == (17, 16, 16, 3)
    (again,) = generate("again", "--seed", 1)
    np.testing.assert_array_equal(first, again)
    series = generate("series", "--count", 3)
    assert len(series) == 3 and np.array_equal(series[1], first) and not np.array_equal(series[0], first)


def test_half_rate_is_another_path(student: Path, tmp_path: Path) -> None:
    for rate in ("half-rate", "full-rate"):
        assert avd("generate", student, "--prompt", "a ball", "--output", tmp_path / f"{rate}.mp4", f"--{rate}") == 0
    assert avd("generate", student, "--prompt", "a ball", "--output", tmp_path / "own.mp4") == 0
    names = ("half-rate", "full-rate", "own")
    half, full, own = (read_video(tmp_path / f"{name}.mp4").frames.astype(float) for name in names)
    # What the student was trained on is its default. Two runs need not agree in a pixel's last bit.
    assert np.abs(own - half).mean() < 0.1 * np.abs(full - half).mean()


def test_prompts_come_from_a_file_too(student: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a red ball\n\na blue box\n")
    assert avd("generate", student, "--prompts", tmp_path / "prompts.txt", "--output", tmp_path / "video.mp4") == 0
    assert {path.name for path in tmp_path.glob("*.mp4")} == {"video-0.mp4", "video-1.mp4"}


def test_a_student_is_measured(student: Path, capfd: pytest.CaptureFixture[str]) -> None:
    options = ("--clips", 3, "--repeats", 2, "--set", "size=16")
    assert avd("evaluate", student, "--json", "rows/student.json", *options, "--name", "mine") == 0
    assert [path.name for path in Path("rows").iterdir()] == ["student.json"]
    row = only_row("rows/student.json")
    assert (row.name, row.steps, row.network_calls, row.videos, row.seed) == ("mine", 4, 4, 3, 0)
    assert row.recipe is not None and row.recipe["seed"] == 3
    assert row.seconds_per_video is not None and row.seconds_per_video > 0
    assert row.score("world", "diversity_colour") is not None
    assert "mine" in capfd.readouterr().out
    assert avd("table", "rows/student.json") == 0
    assert "| mine" in capfd.readouterr().out


def test_a_teacher_is_measured(place: Path) -> None:
    options = ("--clips", 2, "--repeats", 0, "--set", "size=16", "--steps", 2)
    assert avd("evaluate", "tiny", "--json", "teacher.json", *options) == 0
    row = only_row("teacher.json")
    assert (row.name, row.steps, row.network_calls, row.recipe) == ("tiny", 2, 4, None)
    assert row.score("world", "diversity_colour") is None


def test_an_evaluation_that_was_stopped_samples_what_is_missing(
    place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    options = ("--clips", 20, "--repeats", 0, "--set", "size=16", "--steps", 2, "--samples", "kept")
    decode, batches = VideoModel.decode_video, []

    def interrupt(self: VideoModel, latents: torch.Tensor) -> np.ndarray:
        batches.append(len(latents))
        if len(batches) == 2:
            raise KeyboardInterrupt
        return decode(self, latents)

    monkeypatch.setattr(VideoModel, "decode_video", interrupt)
    assert avd("evaluate", "tiny", "--json", "stopped.json", *options) == 130
    assert not Path("stopped.json").exists()
    before = snapshot(Path("kept"))
    assert avd("evaluate", "tiny", "--json", "stopped.json", *options) == 0
    assert batches == [16, 4, 4]
    assert before.items() <= snapshot(Path("kept")).items()
    assert only_row("stopped.json").videos == 20
    assert avd("evaluate", "tiny", "--json", "other.json", *options, "--seed", 1) == 2
    assert "kept holds clips of another model, seed or set of prompts" in capfd.readouterr().err


def test_videos_made_elsewhere_are_measured(clips: Path) -> None:
    assert avd("evaluate", clips, "--suite", "world", "--json", "clips.json", "--clips", 4, "--set", "size=16") == 0
    row = only_row("clips.json")
    assert (row.name, row.steps, row.videos, row.seconds_per_video) == ("clips", None, CLIPS, None)


def test_no_command_reads_more_of_a_model_than_it_uses(
    clips: Path, cache: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from avd.models.wan.files import ModelFiles

    read: list[str] = []
    load = ModelFiles.load
    monkeypatch.setattr(ModelFiles, "load", lambda files, part, dtype: (read.append(part), load(files, part, dtype))[1])
    assert avd("inspect", cache) == 0 and not read
    assert avd("prepare", clips, "--model", "tiny", "--output", "cache-again") == 0
    assert sorted(read) == ["text_encoder", "vae"]
    read.clear()
    unwatched = ("--set", "training.sample_every=0", "--set", "monitors.every=0")
    assert avd("distill", "small.yaml", "--data", "cache", "--output", "run-read", *unwatched) == 0
    assert not read  # prompts and latents are prepared, and the networks are filled tensor by tensor
