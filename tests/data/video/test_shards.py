"""Tar archives: the same clips as from the same files in a folder, and damage that costs no more than it must."""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path

import pytest

from avd.data import CaptionedFile, LatentCache, ReadOptions, prepare, read_captions, write_captions
from avd.data.video.shards import index_tar, open_span
from avd.types import UserError
from helpers.kill_preparation import Pooling
from helpers.odd_videos import KEPT, SKIPPED, as_bytes, beside, make_folder, pictures

READING = ReadOptions(5, 8, (16, 24), 1)


def make_tar(path: Path, members: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def clip(level: int) -> bytes:
    return as_bytes(frames=pictures(color=(level, level, level)))


def clips(count: int) -> dict[str, bytes]:
    return {
        name: data
        for i in range(count)
        for name, data in ((f"{i}.mp4", clip(20 * i + 40)), (f"{i}.txt", f"{i}".encode()))
    }


def listed(cache: Path) -> dict[str, tuple[str, list[float]]]:
    held = LatentCache(cache)
    latents = held.latents(range(len(held))).flatten(1).tolist()
    return {item.file: (item.caption, values) for item, values in zip(held.items, latents, strict=True)}


def skipped(cache: Path) -> dict[str, str]:
    path = cache / "skipped.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return {skip["file"]: skip["reason"] for skip in map(json.loads, lines)}


def test_a_tar_gives_what_the_same_files_in_a_folder_give(tmp_path: Path) -> None:
    make_folder(tmp_path / "videos")
    plain = [name for name in {**KEPT, **SKIPPED} if os.path.isfile(tmp_path / "videos" / name) and ".tar" not in name]
    with tarfile.open(tmp_path / "all.tar", "w", dereference=True) as tar:
        for name in plain:
            video = tmp_path / "videos" / name
            for path in (video, beside(video), video.with_suffix(".json")):
                if path.is_file():
                    tar.add(path, path.relative_to(tmp_path / "videos"))
    prepare(tmp_path / "videos", None, Pooling(), tmp_path / "folder", READING, batch_size=1)
    prepare(tmp_path / "all.tar", None, Pooling(), tmp_path / "tar", READING, batch_size=1)
    of_folder = {f"all.tar/{file}": value for file, value in listed(tmp_path / "folder").items()}
    of_tar = listed(tmp_path / "tar")
    assert len(of_tar) > 50 and of_tar == {file: of_folder[file] for file in of_tar}
    assert set(of_tar) == {f"all.tar/{name}" for name in plain if name in KEPT}
    reasons = {f"all.tar/{name}": reason for name, (_, reason) in SKIPPED.items() if name in plain}
    reasons["all.tar/folder as caption.mp4"] = "no caption"  # folders are no members
    assert skipped(tmp_path / "tar") == reasons


def test_a_folder_of_shards_is_read_shard_by_shard(tmp_path: Path) -> None:
    three = clips(3)
    make_tar(tmp_path / "data/b.tar", {f"./deep/{name}": data for name, data in three.items()})
    captions = {"0.json": b'{"caption": "zero", "size": 3}', "1.json": b'{"text": "one"}'}
    make_tar(tmp_path / "data/a.tar", {name: data for name, data in three.items() if name.endswith("4")} | captions)
    prepare(tmp_path / "data", None, Pooling(), tmp_path / "cache", READING)
    assert LatentCache(tmp_path / "cache").captions == ["zero", "one", "0", "1", "2"]
    assert [item.file for item in LatentCache(tmp_path / "cache").items][1:3] == ["a.tar/1.mp4", "b.tar/deep/0.mp4"]
    assert skipped(tmp_path / "cache") == {"a.tar/2.mp4": "no caption"}


def test_a_table_may_name_members(tmp_path: Path) -> None:
    make_tar(tmp_path / "data/a.tar", clips(3))
    names = ["a.tar/2.mp4", "a.tar/7.mp4", "a.tar/0.mp4"]
    write_captions(tmp_path / "data/captions.jsonl", [CaptionedFile(name, name[-5]) for name in names])
    prepare(tmp_path / "data", None, Pooling(), tmp_path / "cache", READING)
    assert LatentCache(tmp_path / "cache").captions == ["2", "0"]
    assert skipped(tmp_path / "cache") == {"a.tar/7.mp4": "no such file", "a.tar/1.mp4": "no caption"}
    assert len(read_captions(tmp_path / "data/captions.jsonl")) == 3


def header_of(data: bytes, name: str) -> int:
    return data.index(name.encode() + b"\0")


def test_a_damaged_header_costs_one_member(tmp_path: Path) -> None:
    make_tar(tmp_path / "a.tar", clips(4))
    data = bytearray((tmp_path / "a.tar").read_bytes())
    data[header_of(data, "2.mp4") + 150] ^= 0xFF
    (tmp_path / "a.tar").write_bytes(data)
    prepare(tmp_path / "a.tar", None, Pooling(), tmp_path / "cache", READING)
    assert LatentCache(tmp_path / "cache").captions == ["0", "1", "3"]
    assert skipped(tmp_path / "cache") == {"a.tar": "damaged tar"}
    (trouble,) = index_tar(tmp_path / "a.tar").troubles
    assert "after 1.txt, is damaged" in trouble


@pytest.mark.parametrize("share", [0.3, 0.55, 0.8])
def test_of_a_cut_archive_the_full_members_are_read(tmp_path: Path, share: float) -> None:
    make_tar(tmp_path / "whole.tar", clips(4))
    data = (tmp_path / "whole.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(data[: int(header_of(data, "3.txt") * share) // 512 * 512 + 700])
    prepare(tmp_path / "a.tar", None, Pooling(), tmp_path / "cache", READING)
    captions = LatentCache(tmp_path / "cache").captions
    assert captions == [str(i) for i in range(len(captions))] and 1 <= len(captions) <= 3
    assert skipped(tmp_path / "cache")["a.tar"] == "damaged tar"


def test_an_archive_of_nothing_readable_is_an_error(tmp_path: Path) -> None:
    for data in (b"", b"no tar" * 1000):
        (tmp_path / "a.tar").write_bytes(data)
        with pytest.raises(UserError, match=r"no file in .* can be used .*1 damaged tar"):
            prepare(tmp_path / "a.tar", None, Pooling(), tmp_path / "cache", READING)
        assert not (tmp_path / "cache").exists()


def test_links_duplicates_and_joined_archives(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.GNU_FORMAT) as tar:
        for name, data in {"./x": b"old", "d/y": b"y" * 600}.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        link = tarfile.TarInfo("hard")
        link.type, link.linkname = tarfile.LNKTYPE, "d/y"
        tar.addfile(link)
    make_tar(tmp_path / "b.tar", {"x": b"new", "ü" * 150: b"long"})
    (tmp_path / "c.tar").write_bytes((tmp_path / "a.tar").read_bytes() + (tmp_path / "b.tar").read_bytes())
    index = index_tar(tmp_path / "c.tar")
    contents = {name: open_span(tmp_path / "c.tar", span).read() for name, span in index.members.items()}
    assert contents == {"x": b"new", "d/y": b"y" * 600, "hard": b"y" * 600, "ü" * 150: b"long"}
    assert not index.troubles


def test_a_span_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(range(100)))
    with open_span(tmp_path / "file", (10, 50)) as file:
        assert file.read() == bytes(range(10, 60))
        assert file.seek(-5, io.SEEK_END) == 45 and file.read(9) == bytes(range(55, 60))
        assert file.seek(3) == 3 and file.seek(2, io.SEEK_CUR) == 5 and file.read(1) == b"\x0f"
        assert file.seek(80) == 80 and file.read() == b""
    with open_span(tmp_path / "file", (90, 50)) as file, pytest.raises(OSError, match="ends in the middle"):
        file.read()
