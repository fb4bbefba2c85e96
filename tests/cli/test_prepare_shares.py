"""`avd prepare` by several processes: torchrun, shares of a job array, and what each process loads."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from avd import data
from avd.data import LatentCache, read_captions, write_captions
from avd.data.captions import CaptionedFile
from avd.files import FolderLock
from avd.models.wan.files import ModelFiles
from avd.models.wan.model import VideoModel
from helpers.command import avd, snapshot

CLIPS = 70
"""Two parts of the usual size."""


@pytest.fixture(scope="module", autouse=True)
def clips(place: Path) -> None:
    """Four rendered clips, under 70 names."""
    assert avd("world", "render", "--output", "clips", "--count", 4, "--size", 16) == 0
    captions = [entry.caption for entry in read_captions("clips/captions.jsonl")]
    for index in range(4, CLIPS):
        shutil.copy(f"clips/{index % 4:06d}.mp4", f"clips/{index:06d}.mp4")
    entries = [CaptionedFile(f"{index:06d}.mp4", f"{captions[index % 4]} {index}") for index in range(CLIPS)]
    write_captions("clips/captions.jsonl", entries)


@pytest.fixture(scope="module")
def alone(place: Path) -> Path:
    assert avd("prepare", "clips", "--model", "tiny", "--output", "alone", "--workers", 0) == 0
    return place / "alone"


def test_torchrun_spreads_the_work_over_processes(alone: Path) -> None:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "avd"]
    command = [*launch, "prepare", "clips", "--model", "tiny", "--output", "together", "--workers", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(f"kept {CLIPS} clips of {CLIPS} files") == 1
    assert snapshot(Path("together")) == snapshot(alone)


def test_each_share_of_a_job_array_loads_one_encoder_after_the_other(
    alone: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    loaded: list[str] = []
    load, encode = ModelFiles.load, VideoModel.encode_prompts

    def counted(self: ModelFiles, part: str, dtype: object) -> object:
        loaded.append(part)
        return load(self, part, dtype)  # type: ignore[arg-type]

    def checked(self: VideoModel, prompts: list[str]) -> object:
        assert "vae" not in self._parts, "the VAE is in memory beside the text encoder"
        return encode(self, prompts)

    monkeypatch.setattr(ModelFiles, "load", counted)
    monkeypatch.setattr(VideoModel, "encode_prompts", checked)
    command = ("prepare", "clips", "--model", "tiny", "--output", "array", "--workers", 0, "--shard")
    assert avd(*command, "2/2") == 0
    assert "this share of array is done" in capfd.readouterr().err
    assert avd("inspect", "array") == 2 and "unfinished" in capfd.readouterr().err
    assert loaded == ["vae", "text_encoder"]
    assert avd(*command, "1/2") == 0
    assert f"kept {CLIPS} clips of {CLIPS} files" in capfd.readouterr().err
    assert loaded == ["vae", "text_encoder"] * 2
    assert snapshot(Path("array")) == snapshot(alone)
    assert avd(*command, "2/2") == 0  # run again, it finds all done and loads nothing
    assert loaded == ["vae", "text_encoder"] * 2 and snapshot(Path("array")) == snapshot(alone)


def test_the_prompts_of_a_share_are_encoded_before_another_may_take_the_cache(
    alone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare, other = data.prepare, FolderLock(Path("listed"), "the cache")

    def taken(*arguments: Any, **options: Any) -> data.Summary | None:
        summary = prepare(*arguments, **options)
        other.acquire()
        return summary

    monkeypatch.setattr(data, "prepare", taken)
    Path("prompts.txt").write_text("a red ball drifts left\na blue ball rises\n")
    shutil.copytree(alone, "listed")
    command = ("prepare", "clips", "--model", "tiny", "--output", "listed", "--prompts", "prompts.txt")
    assert avd(*command, "--workers", 0, "--shard", "1/2") == 0
    other.release()
    held = data.EncodedTexts(Path("listed"))
    assert held.prompts == ["a red ball drifts left", "a blue ball rises"] and not held.lacking(held.prompts)
    assert LatentCache("listed").items == LatentCache(alone).items


def test_batches_are_as_large_as_asked(alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    encode = VideoModel.encode_video
    monkeypatch.setattr(
        VideoModel, "encode_video", lambda self, frames: (sizes.append(len(frames)), encode(self, frames))[1]
    )
    assert avd("prepare", "clips", "--model", "tiny", "--output", "batches", "--workers", 0, "--batch", 30) == 0
    assert sizes == [30, 30, 4, 6]  # a part of 64 files, and the rest
    assert LatentCache("batches").items == LatentCache(alone).items


@pytest.mark.parametrize("shard", ["0/2", "3/2", "2", "a/b", "1/0"])
def test_a_share_that_makes_no_sense_is_refused(shard: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert avd("prepare", "clips", "--model", "tiny", "--output", "new", "--shard", shard) == 2
    assert f"--shard is '{shard}': it must be I/N" in capfd.readouterr().err
    assert not Path("new").exists()
