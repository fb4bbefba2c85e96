"""From video files to a cache: what is kept, what is skipped, and going on after a crash."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from avd.data import CaptionedFile, LatentCache, Summary, prepare, read_captions, write_captions, write_video
from avd.types import UserError


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

    def encode_prompts(self, prompts: list[str]) -> Tensor:
        return torch.tensor([[[float(ord(letter))] * 2 for letter in prompt[:4].ljust(4)] for prompt in prompts])


def run(folder: Path, encoder: FakeEncoder, name: str = "cache", **options: object) -> Summary:
    settings = {"frames": 5, "fps": 8, "height": 16, "width": 24, "batch_size": 2, "shard_size": 3} | options
    return prepare(folder / "videos", folder / "captions.jsonl", encoder, folder / name, **settings)  # type: ignore[arg-type]


def contents(path: Path) -> dict[str, bytes]:
    return {entry.name: entry.read_bytes() for entry in path.iterdir()}


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


GOOD = [0, 2, 3, 6, 7, 9, 10]


def test_good_files_are_encoded_and_bad_ones_listed(folder: Path) -> None:
    seen: list[tuple[int, int]] = []
    summary = run(folder, FakeEncoder(), progress=lambda done, count: seen.append((done, count)))
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
    assert cache.prompts([1])[0, :, 0].tolist() == [float(ord(letter)) for letter in "2 ca"]


def test_a_crash_at_any_batch_leaves_no_trace(folder: Path) -> None:
    whole = FakeEncoder()
    expected_summary = run(folder, whole, "whole")
    expected = contents(folder / "whole")
    assert whole.calls == 5
    for crash in range(whole.calls):
        name = f"crash-{crash}"
        with pytest.raises(KeyboardInterrupt):
            run(folder, FakeEncoder(fail_at=crash), name)
        rest = FakeEncoder()
        assert run(folder, rest, name) == expected_summary
        assert contents(folder / name) == expected
        assert rest.calls == whole.calls - crash // 2 * 2  # what is in a complete shard is not encoded again


def test_crashes_in_a_row_leave_no_trace(folder: Path) -> None:
    run(folder, FakeEncoder(), "whole")
    for crash in (1, 0, 2, 2):
        with pytest.raises(KeyboardInterrupt):
            run(folder, FakeEncoder(fail_at=crash))
    run(folder, FakeEncoder())
    assert contents(folder / "cache") == contents(folder / "whole")


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
        prepare(
            folder / "no", folder / "captions.jsonl", FakeEncoder(), folder / "c", frames=5, fps=8, height=8, width=8
        )
    with pytest.raises(UserError, match="holds other files"):
        run(folder, FakeEncoder(), "videos")


@pytest.mark.parametrize("beside", [False, True])
def test_captions_are_looked_for_in_the_folder_of_videos(folder: Path, beside: bool) -> None:
    videos, given = folder / "videos", folder / "captions.jsonl"
    if beside:
        for entry in read_captions(given):
            (videos / entry.file).with_suffix(".txt").write_text(entry.caption)
        given.unlink()
    else:
        given.rename(videos / "captions.jsonl")
    settings = {"frames": 5, "fps": 8, "height": 16, "width": 24}
    summary = prepare(videos, None, FakeEncoder(), folder / "cache", **settings)  # type: ignore[arg-type]
    cache = LatentCache(folder / "cache")
    assert summary.kept == len(GOOD) and sorted(cache.captions) == sorted(f"{i} caption" for i in GOOD)
