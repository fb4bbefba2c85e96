"""From video files to a cache: what is kept, what is skipped, and going on after a crash."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from torch import Tensor

from avd.data import (
    CaptionedFile,
    Checks,
    LatentCache,
    ReadOptions,
    Reports,
    Summary,
    prepare,
    read_captions,
    write_captions,
    write_video,
)
from avd.types import Conditions, UserError


class FakeEncoder:
    """Pools pixels into latents and letters into embeddings; fails on call number `fail_at`.

    The scale of a clip's latents depends on how many clips share its batch, as the last bits of a real encoder may.
    """

    identity = "fake-1"

    def __init__(self, fail_at: int | None = None) -> None:
        self.calls = 0
        self._fail_at = fail_at

    def encode_video(self, frames: np.ndarray) -> Tensor:
        if self.calls == self._fail_at:
            raise KeyboardInterrupt
        self.calls += 1
        assert frames.dtype == np.uint8 and frames.shape[1:] == (5, 16, 24, 3)
        pixels_BCFHW = torch.from_numpy(frames).permute(0, 4, 1, 2, 3) / 255
        return torch.nn.functional.avg_pool3d(pixels_BCFHW, (1, 8, 8))[:, :, ::4] * (1 + len(frames) / 8)

    def encode_prompts(self, prompts: list[str]) -> Conditions:
        letters = [[[float(ord(letter))] * 2 for letter in prompt[:4].ljust(4, "\0")] for prompt in prompts]
        return Conditions({"embedding": torch.tensor(letters)})

    def drop(self, *parts: str) -> None:
        self.dropped = parts


def run(folder: Path, encoder: FakeEncoder, name: str = "cache", **options: object) -> Summary:
    reading = {key: options.pop(key) for key in [*options] if key in READING}
    settings = {"batch_size": 2, "shard_size": 3} | options
    captions = folder / "captions.jsonl"
    summary = prepare(folder / "videos", captions, encoder, folder / name, clips(**reading), **settings)  # type: ignore[arg-type]
    assert summary is not None
    return summary


READING = {field.name for field in fields(ReadOptions)}


def clips(**changes: Any) -> ReadOptions:
    return replace(ReadOptions(5, 8, (16, 24), 1), **changes)


def contents(path: Path) -> dict[str, bytes]:
    return {str(entry.relative_to(path)): entry.read_bytes() for entry in path.rglob("*") if entry.is_file()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Eleven captioned files, seven of them good, and one file without a caption."""
    videos = tmp_path / "videos"
    entries = []
    for index in range(11):
        file = f"part/{index}.mp4" if index == 6 else f"{index}.mp4"
        entries.append(CaptionedFile(file, f"{index} caption"))
        if index == 1:
            (videos / file).touch()
        elif index == 4:
            (videos / file).write_text("not a video")
        elif index == 5:
            write_video(videos / file, np.full((3, 32, 32, 3), 90, np.uint8), 8)
        elif index != 8:
            write_video(videos / file, np.full((9 + index, 32, 32, 3), 20 * index + 20, np.uint8), 16)
    write_video(videos / "part/extra.MP4", np.full((9, 32, 32, 3), 90, np.uint8), 16)
    write_captions(tmp_path / "captions.jsonl", entries)
    return tmp_path


BRAIN = {"dtype": "bfloat16"}
GOOD = [0, 2, 3, 6, 7, 9, 10]


def test_good_files_are_encoded_and_bad_ones_listed(folder: Path) -> None:
    seen: list[tuple[int, int]] = []
    summary = run(folder, FakeEncoder(), reports=Reports(videos=lambda done, count: seen.append((done, count))))
    assert summary.kept == 7
    assert summary.seconds == 7 * 5 / 8
    assert summary.skipped == {"empty file": 1, "unreadable": 1, "too short": 1, "no such file": 1, "no caption": 1}
    assert summary.size == sum(len(data) for data in contents(folder / "cache").values())
    assert seen == [(done, 11) for done in range(12)]

    skipped = [json.loads(line) for line in (folder / "cache" / "skipped.jsonl").read_text().splitlines()]
    assert [(skip["file"], skip["reason"]) for skip in skipped] == [
        ("1.mp4", "empty file"),
        ("4.mp4", "unreadable"),
        ("5.mp4", "too short"),
        ("8.mp4", "no such file"),
        ("part/extra.MP4", "no caption"),
    ]
    assert skipped[2]["detail"] == "holds 3 frames at 8 fps, 5 are needed"

    cache = LatentCache(folder / "cache")
    cache.verify()
    assert [item.file for item in cache.items] == [f"part/{n}.mp4" if n == 6 else f"{n}.mp4" for n in GOOD]
    assert cache.captions == [f"{index} caption" for index in GOOD]
    assert cache.latents(range(7)).shape == (7, 3, 2, 2, 3)
    batch = torch.tensor([2, 2, 1, 2, 2, 1, 1])  # batches of 2 within shards of 3
    grey = cache.latents(range(7)).mean(dim=(1, 2, 3, 4)) / (1 + batch / 8) * 255
    torch.testing.assert_close(grey, torch.tensor([20.0 * index + 20 for index in GOOD]), atol=2, rtol=0)
    assert cache.prompts([1])["embedding"][0, :, 0].tolist() == [float(ord(letter)) for letter in "2 ca"]


def test_a_crash_at_any_batch_leaves_no_trace(folder: Path) -> None:
    uninterrupted = FakeEncoder()
    expected_summary = run(folder, uninterrupted, "uninterrupted")
    expected = contents(folder / "uninterrupted")
    assert uninterrupted.calls == 5
    for crash in range(uninterrupted.calls):
        name = f"crash-{crash}"
        with pytest.raises(KeyboardInterrupt):
            run(folder, FakeEncoder(fail_at=crash), name)
        rest = FakeEncoder()
        assert run(folder, rest, name) == expected_summary
        assert contents(folder / name) == expected
        assert rest.calls == uninterrupted.calls - crash // 2 * 2  # what is in a complete shard is not encoded again


def test_crashes_in_a_row_leave_no_trace(folder: Path) -> None:
    run(folder, FakeEncoder(), "uninterrupted")
    for crash in (1, 0, 2, 2):
        with pytest.raises(KeyboardInterrupt):
            run(folder, FakeEncoder(fail_at=crash))
    run(folder, FakeEncoder())
    assert contents(folder / "cache") == contents(folder / "uninterrupted")


def test_a_finished_cache_is_not_encoded_again(folder: Path) -> None:
    summary = run(folder, FakeEncoder())
    before = contents(folder / "cache")
    again = FakeEncoder()
    assert run(folder, again) == summary
    assert again.calls == 0
    assert contents(folder / "cache") == before


def test_another_encoder_is_refused(folder: Path) -> None:
    run(folder, FakeEncoder())
    other = FakeEncoder()
    other.identity = "fake-2"
    with pytest.raises(UserError, match="identity 'fake-1', this run has 'fake-2'"):
        run(folder, other)


def test_refused_windows_are_listed_and_a_crash_among_them_leaves_no_trace(folder: Path) -> None:
    bright = np.full((5, 32, 32, 3), 90, np.uint8)
    dark, cut = np.zeros_like(bright), np.concatenate([bright[:3], 255 - bright[:2]])
    files = {"a": [bright, dark, cut, bright], "b": [bright, dark], "c": [dark, dark], "d": [dark, bright]}
    for name, windows in files.items():
        write_video(folder / f"videos/{name}.mp4", np.concatenate(windows), 8)
    write_captions(folder / "captions.jsonl", [CaptionedFile(f"{name}.mp4", name) for name in files])
    options = {"windows": 4, "checks": Checks(max_black=0.5, cuts=False), "shard_size": 2}
    summary = run(folder, FakeEncoder(), "uninterrupted", **options)
    assert [(item.file, item.start * 8) for item in LatentCache(folder / "uninterrupted").items] == [
        ("a.mp4", 0), ("a.mp4", 15), ("b.mp4", 0), ("d.mp4", 5)
    ]  # fmt: skip
    listed = [json.loads(line) for line in (folder / "uninterrupted/skipped.jsonl").read_text().splitlines()]
    windows = [skip for skip in listed if skip["start"] is not None]
    assert [(skip["file"][0], skip["start"] * 8, skip["reason"], skip["kept"]) for skip in windows] == [
        ("a", 5, "black", 1), ("a", 10, "hard cut", 1), ("b", 5, "black", 1),
        ("c", 0, "black", 0), ("c", 5, "black", 0), ("d", 0, "black", 0),
    ]  # fmt: skip
    assert summary.skipped["black"] == 5
    for crash in range(2):
        with pytest.raises(KeyboardInterrupt):
            run(folder, FakeEncoder(fail_at=crash), f"crash-{crash}", **options)
        assert run(folder, FakeEncoder(), f"crash-{crash}", workers=2, **options) == summary
        assert contents(folder / f"crash-{crash}") == contents(folder / "uninterrupted")


def test_changed_captions_are_refused(folder: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(folder, FakeEncoder(fail_at=2), "begun")
    run(folder, FakeEncoder(), "finished")
    path = folder / "captions.jsonl"
    original = path.read_text()
    path.write_text(original.replace("2 caption", "a new caption"))
    for name in ("begun", "finished"):
        with pytest.raises(UserError, match=r"changed after .* was begun \(2\.mp4\)"):
            run(folder, FakeEncoder(), name)
    path.write_text(original + '{"file": "part/new.mp4", "caption": "new"}\n')
    with pytest.raises(UserError, match=r"finished without 1 files .*part/new\.mp4"):
        run(folder, FakeEncoder(), "finished")


def test_nothing_usable_is_an_error_and_can_be_mended(folder: Path) -> None:
    with pytest.raises(UserError, match=r"no file in .* can be used \(.*too short.*first, 0\.mp4: holds 5 frames"):
        run(folder, FakeEncoder(), frames=50)
    assert not (folder / "cache").exists()
    assert run(folder, FakeEncoder()).kept == 7


def test_impossible_runs_are_refused(folder: Path) -> None:
    with pytest.raises(UserError, match="batch size 0"):
        run(folder, FakeEncoder(), batch_size=0)
    with pytest.raises(UserError, match="no such folder"):
        prepare(folder / "no", folder / "captions.jsonl", FakeEncoder(), folder / "c", clips())
    with pytest.raises(UserError, match="holds other files"):
        run(folder, FakeEncoder(), "videos")


@pytest.mark.parametrize("workers", [1, 2, 20])
def test_bytes_do_not_depend_on_the_number_of_processes(folder: Path, workers: int) -> None:
    expected = run(folder, FakeEncoder(), "alone", windows=2)
    assert run(folder, FakeEncoder(), windows=2, workers=workers) == expected
    assert contents(folder / "cache") == contents(folder / "alone")
    assert not multiprocessing.active_children()


def test_an_interruption_ends_the_processes(folder: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(folder, FakeEncoder(fail_at=1), workers=2)
    assert not multiprocessing.active_children()
    run(folder, FakeEncoder(), "alone")
    run(folder, FakeEncoder(), workers=2)
    assert contents(folder / "cache") == contents(folder / "alone")


class Killer(FakeEncoder):
    """Kills the decoding processes while the first batch is encoded."""

    def encode_video(self, frames: np.ndarray) -> Tensor:
        if self.calls == 0:
            for process in multiprocessing.active_children():
                process.kill()
                process.join()
        return super().encode_video(frames)


def test_a_crashed_decoder_costs_its_file_only(folder: Path) -> None:
    summary = run(folder, Killer(), workers=2)
    assert 1 <= summary.skipped["crashed"] <= 2
    assert summary.kept + summary.skipped["crashed"] >= 7
    assert "crashed" in summary.examples["crashed"].detail
    LatentCache(folder / "cache").verify()


def test_long_files_give_several_windows(folder: Path) -> None:
    summary = run(folder, FakeEncoder(), windows=2)
    cache = LatentCache(folder / "cache")
    # A file of 9 + n frames at 16 a second holds half as many at 8: a second window of 5 needs n = 10.
    assert [(item.file, item.start) for item in cache.items][-2:] == [("10.mp4", 0.0), ("10.mp4", 5 / 8)]
    assert (summary.kept, summary.files, summary.seconds) == (8, 7, 5.0)
    assert summary.source_seconds == pytest.approx(sum(9 + n for n in GOOD) / 16)
    torch.testing.assert_close(cache.prompts([6])["embedding"], cache.prompts([7])["embedding"])


def test_a_text_is_encoded_and_stored_once_after_all_videos(tmp_path: Path) -> None:
    captions = ["abc", "abc", "abc", "def", "abc", "abc", "def", "g"]
    for index in range(len(captions)):
        write_video(tmp_path / f"videos/{index}.mp4", np.full((6, 32, 32, 3), 90, np.uint8), 8)
    write_captions(tmp_path / "captions.jsonl", [CaptionedFile(f"{i}.mp4", text) for i, text in enumerate(captions)])
    events: list[str] = []

    class Listing(FakeEncoder):
        def encode_video(self, frames: np.ndarray) -> Tensor:
            events.append("video")
            return super().encode_video(frames)

        def encode_prompts(self, prompts: list[str]) -> Conditions:
            events.extend(prompts)
            return super().encode_prompts(prompts)

        def drop(self, *parts: str) -> None:
            events.append(f"drop {' '.join(parts)}")

    run(tmp_path, Listing(), shard_size=4, texts=["", "ugly"])
    assert events == ["video"] * 4 + ["drop vae", "abc", "def", "g", "", "ugly"]
    expected = FakeEncoder().encode_prompts(captions)["embedding"]
    found = LatentCache(tmp_path / "cache").prompts([7, 3, 0, 4])["embedding"]
    assert torch.equal(found, expected[[7, 3, 0, 4]])
    rows = 0
    for path in (tmp_path / "cache").rglob("texts-*.safetensors"):
        with safe_open(path, "pt") as shard:
            rows += shard.get_slice("condition.embedding").get_shape()[0]
    assert rows == 0 + 4 + 3 + 3 + 1


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"windows": 2}, "windows"),
        ({"picture_fps": 4}, "picture_fps"),
        ({"fps": 4}, "geometry"),
        ({"skip_start": 0.1}, "skip_start"),
        ({"spread": True}, "spread"),
        ({"checks": Checks(min_size=8)}, "checks"),
        (BRAIN, "dtype"),
    ],
)
def test_other_ways_of_cutting_are_not_mixed(folder: Path, change: dict[str, object], key: str) -> None:
    run(folder, FakeEncoder())
    with pytest.raises(UserError, match=f"was begun with {key}"):
        run(folder, FakeEncoder(), **change)


def test_captions_that_are_also_judged_by_are_reported(folder: Path) -> None:
    (folder / "heldout.txt").write_text("2 CAPTION!\nanother\n3  caption\n")
    (folder / "clean.txt").write_text("another\n")
    warnings: list[str] = []
    run(
        folder,
        FakeEncoder(),
        heldout=[folder / "heldout.txt", folder / "clean.txt"],
        reports=Reports(warn=warnings.append),
    )
    assert warnings == [f"2 of 11 different captions are prompts of {folder / 'heldout.txt'}, such as: 2 caption"]
    assert LatentCache(folder / "cache").captions == [f"{index} caption" for index in GOOD]  # it warns and drops none


@pytest.mark.parametrize("name", [b"bad\xff.mp4", b"bad\xff"])
def test_names_that_are_not_text_are_skipped(folder: Path, name: bytes) -> None:
    videos = folder / "videos"
    if name.endswith(b"mp4"):
        shutil.copy(videos / "0.mp4", os.fsdecode(os.fsencode(videos) + b"/" + name))
    else:
        os.mkdir(os.fsencode(videos) + b"/" + name)
    assert run(folder, FakeEncoder()).skipped["unreadable name"] == 1


def test_a_place_without_captioned_videos_is_an_error(tmp_path: Path) -> None:
    def message(videos: Path) -> str:
        with pytest.raises(UserError) as caught:
            prepare(videos, None, FakeEncoder(), tmp_path / "cache", clips())
        assert not (tmp_path / "cache").exists()
        return str(caught.value)

    (tmp_path / "videos").mkdir()
    assert "there are no videos in" in message(tmp_path / "videos")
    write_video(tmp_path / "videos/a.mp4", np.full((9, 32, 32, 3), 90, np.uint8), 8)
    assert "has a caption: name a table with --captions" in message(tmp_path / "videos")
    assert "it is not a .tar file" in message(tmp_path / "videos/a.mp4")


def test_a_table_may_name_a_folder_of_pictures_and_files_of_any_suffix(folder: Path) -> None:
    for number in range(5):
        (folder / "videos/walk").mkdir(exist_ok=True)
        Image.new("RGB", (32, 32), (90, 90, 90)).save(folder / f"videos/walk/{number}.png")
    (folder / "videos/nothing").mkdir()
    (folder / "videos/0.mp4").rename(folder / "videos/0.video")
    names = ["walk/", "0.video", "nothing"]
    write_captions(folder / "captions.jsonl", [CaptionedFile(name, "caption") for name in names])
    assert run(folder, FakeEncoder()).skipped["no pictures"] == 1
    assert [item.file for item in LatentCache(folder / "cache").items] == ["walk", "0.video"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read_is_skipped(folder: Path) -> None:
    (folder / "videos/0.mp4").chmod(0)
    (folder / "videos/secret").mkdir(mode=0)
    skipped = run(folder, FakeEncoder()).skipped
    assert skipped["unreadable"] == 3


@pytest.mark.parametrize("beside", [False, True])
def test_captions_are_looked_for_in_the_folder_of_videos(folder: Path, beside: bool) -> None:
    videos, given = folder / "videos", folder / "captions.jsonl"
    if beside:
        for entry in read_captions(given):
            (videos / entry.file).with_suffix(".txt").write_text(entry.caption)
        given.unlink()
    else:
        given.rename(videos / "captions.jsonl")
    summary = prepare(videos, None, FakeEncoder(), folder / "cache", clips())
    cache = LatentCache(folder / "cache")
    assert summary.kept == len(GOOD) and sorted(cache.captions) == sorted(f"{i} caption" for i in GOOD)
