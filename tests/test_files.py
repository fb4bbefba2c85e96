"""Files and folders: the old content or the new, never a part; and what cannot be read is one line."""

from __future__ import annotations

import json
import math
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from avd import files
from avd.files import (
    FolderLock,
    append_json_line,
    as_text,
    atomic_folder,
    check_can_make,
    clear_unfinished,
    is_unfinished,
    read_json,
    read_json_lines,
    read_text,
    remove_folder,
    replace_folder,
    replacing,
    unfinished,
    write_atomically,
    write_json,
    write_json_lines,
    write_text,
)
from avd.types import UserError


class Killed(BaseException):
    """Ends the process as far as the code under test can tell: nothing catches it."""


def kill(*args: object, **options: object) -> Any:
    raise Killed


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


# Writing a file

WRITES: dict[str, Callable[[Path], None]] = {
    "bytes": lambda path: write_atomically(path, b"new"),
    "text": lambda path: write_text(path, "new"),
    "json": lambda path: write_json(path, {"new": 1}),
    "json lines": lambda path: write_json_lines(path, [{"new": 1}]),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_a_write_cut_short_leaves_the_old_file_and_what_the_next_one_replaces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path], None], moment: str
) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(os, moment, kill)
        write(path)
    assert path.read_text() == "old"
    assert [is_unfinished(entry) for entry in sorted(tmp_path.iterdir())] == [False, True]
    write(path)
    assert names(tmp_path) == ["a.txt"] and "new" in path.read_text()


def test_a_write_replaces_the_full_file_and_makes_the_folders_above(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "a.txt"
    write_text(path, "long old text")
    write_text(path, "ä")
    assert snapshot(tmp_path) == {"deep/er/a.txt": "ä".encode()}


def test_bytes_reach_the_disk_before_the_name_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    replace, sync = os.replace, files.sync

    def watched_sync(path: Path) -> None:
        order.append(path.name)
        sync(path)

    def watched_replace(source: Path, target: Path) -> None:
        order.append("rename")
        replace(source, target)

    monkeypatch.setattr(files, "sync", watched_sync)
    monkeypatch.setattr(os, "replace", watched_replace)
    write_text(tmp_path / "a.txt", "")
    assert order == [unfinished(tmp_path / "a.txt").name, "rename", tmp_path.name]
    order.clear()
    with atomic_folder(tmp_path / "student") as folder:
        (folder / "inner").mkdir()
        (folder / "inner" / "weights").write_text("")
    assert sorted(order[:3]) == ["inner", "student.writing", "weights"] and order[3:] == ["rename", tmp_path.name]


def test_a_file_is_for_the_eyes_that_the_umask_lets_see(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_text("")
    with replacing(tmp_path / "a") as writing:
        writing.write_text("")
        writing.chmod(0o600)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


def test_a_block_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "old")
    with pytest.raises(ZeroDivisionError), replacing(tmp_path / "a") as writing:
        writing.write_text("half")
        raise ZeroDivisionError
    assert (tmp_path / "a").read_text() == "old"


@pytest.mark.parametrize("write", [*WRITES.values(), lambda path: append_json_line(path, {})])
def test_what_cannot_be_written_is_one_line(tmp_path: Path, write: Callable[[Path], None]) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match=r"^cannot write .*inner: [A-Z].*$"):
        write(tmp_path / "file" / "inner")
    assert snapshot(tmp_path) == {"file": b"mine"}


def test_json_has_finite_numbers_or_null(tmp_path: Path) -> None:
    value = {"b": [math.nan, (1.5, -math.inf)], "a": {"ä": math.inf}, "n": 7, "t": True, "none": None}
    clean = {"b": [None, [1.5, None]], "a": {"ä": None}, "n": 7, "t": True, "none": None}
    path = tmp_path / "a.json"
    write_json(path, value)
    assert path.read_text() == json.dumps(clean, indent=2) + "\n"
    write_json(path, value, indent=1, sort_keys=True, ascii_only=False)
    assert path.read_text(encoding="utf-8") == json.dumps(clean, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    write_json_lines(path, [value, 1])
    append_json_line(path, value)
    assert path.read_text() == f"{json.dumps(clean)}\n1\n{json.dumps(clean)}\n"


@pytest.mark.parametrize("durable", [True, False])
def test_an_appended_line_is_waited_for_if_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durable: bool
) -> None:
    seen: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda handle: seen.append(os.fstat(handle).st_size))
    append_json_line(tmp_path / "a", {"n": 1}, durable=durable)
    assert seen == ([9] if durable else [])


def test_what_cannot_be_made_is_refused_beforehand(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    check_can_make(tmp_path / "deep" / "er")
    with pytest.raises(UserError, match="file is a file"):
        check_can_make(tmp_path / "file" / "a" / "b")


# Writing a folder


def test_a_folder_replaces_an_older_one_with_all_its_files(tmp_path: Path) -> None:
    for n in range(2):
        with atomic_folder(tmp_path / "student") as folder:
            (folder / f"{n}.json").write_text("{}")
        assert snapshot(tmp_path) == {f"student/{n}.json": b"{}"}


def test_a_folder_cut_short_leaves_the_older_one(tmp_path: Path) -> None:
    (tmp_path / "student").mkdir()
    (tmp_path / "student" / "old.json").write_text("{}")
    with pytest.raises(OSError, match="full"), atomic_folder(tmp_path / "student") as folder:
        (folder / "new.json").write_text("{}")
        raise OSError("the disk is full")
    assert snapshot(tmp_path) == {"student/old.json": b"{}"}


def test_what_a_killed_process_left_is_cleared_away(tmp_path: Path) -> None:
    for stale in ("student.writing", "student.old.writing"):
        (tmp_path / stale).mkdir()
        (tmp_path / stale / "part").write_text("")
    with atomic_folder(tmp_path / "student") as folder:
        assert list(folder.iterdir()) == []
    assert names(tmp_path) == ["student"]


def two_folders(place: Path) -> tuple[Path, Path]:
    new, old = unfinished(place / "student"), place / "student"
    for folder, text in ((new, "new"), (old, "old")):
        folder.mkdir()
        for file in "ab":
            (folder / file).write_text(text)
    return new, old


@pytest.mark.parametrize(
    ("moment", "calls", "found"), [("replace", 1, "old"), ("replace", 2, None), ("rmtree", 1, "new")]
)
def test_a_replacement_cut_short_leaves_no_mixture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str, calls: int, found: str | None
) -> None:
    new, path = two_folders(tmp_path)
    owner = os if moment == "replace" else shutil
    original, count = getattr(owner, moment), 0

    def cut(*places: Path) -> None:
        nonlocal count
        count += 1
        return kill() if count == calls else original(*places)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(owner, moment, cut)
        replace_folder(new, path)
    assert {file.read_text() for file in path.glob("*")} == ({found} if found else set())
    assert all(is_unfinished(entry) for entry in tmp_path.iterdir() if entry != path)
    assert len(names(tmp_path)) == 2  # in the instant between two renames both are there, under other names
    clear_unfinished(tmp_path)
    assert names(tmp_path) == (["student"] if found else [])


def test_a_removal_cut_short_leaves_nothing_under_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, path = two_folders(tmp_path)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(shutil, "rmtree", kill)
        remove_folder(path)
    assert not path.exists()
    path.mkdir()
    remove_folder(path)  # though something of the last try is in the way
    clear_unfinished(tmp_path)
    assert names(tmp_path) == []


def test_leftovers_of_earlier_versions_are_known_and_nothing_else_is_cleared(tmp_path: Path) -> None:
    leftovers = ["a.json.writing", "shard-00001.safetensors.partial", "results.json.part"]
    for name in (*leftovers, "part", "writing.txt", "a.partially"):
        (tmp_path / name).touch()
    for name in (".writing-12", "step-0000012", "step-0000012.writing"):
        (tmp_path / name / "inner").mkdir(parents=True)
    clear_unfinished(tmp_path)
    assert names(tmp_path) == ["a.partially", "part", "step-0000012", "writing.txt"]
    clear_unfinished(tmp_path / "none")


def test_a_lock_is_of_one_holder_at_a_time(tmp_path: Path) -> None:
    first, second = FolderLock(tmp_path, "run a"), FolderLock(tmp_path, "run a")
    first.acquire()
    first.acquire()
    with pytest.raises(UserError, match="another process is writing into run a: wait for it or end it"):
        second.acquire()
    first.release()
    second.acquire()
    second.release()
    second.release()


# Reading


def test_text_is_utf_8_and_loses_its_mark(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffä\r\nb".encode())
    assert read_text(path) == "ä\r\nb"
    with pytest.raises(UserError, match=r"it is not UTF-8 text \(byte 1\): save it as UTF-8"):
        as_text(b"a\xff", "it")
    with pytest.raises(UserError, match="it is a binary file"):
        as_text(b"a\0", "it")


@pytest.mark.parametrize("read", [read_text, read_json_lines, lambda path: read_json(path, "the plan", "plan again")])
def test_what_cannot_be_read_is_one_line(tmp_path: Path, read: Callable[[Path], object]) -> None:
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(UserError, match=f"^cannot read {path}: [A-Z].*$"):
            read(path)


def test_json_is_read_back(tmp_path: Path) -> None:
    write_json(tmp_path / "a", {"ä": [1, None]}, ascii_only=False)
    assert read_json(tmp_path / "a", "the plan", "plan again") == {"ä": [1, None]}


@pytest.mark.parametrize("data", [b"", b'{"a": ', b"\xff\xfe", b"[1]", b"null", b"[" * 200_000, b"\0\0"])
def test_json_that_is_damaged_is_one_line(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(UserError, match=r"^the plan .*a is damaged \(.+\): plan again$"):
        read_json(tmp_path / "a", "the plan", "plan again")


@pytest.mark.parametrize("tail", [b"", b'{"n": 2', b"\0\0\0", b"\xc3", b'{"n": "\xc3\xa4'])
@pytest.mark.parametrize("remedy", [None, "write it again"])
def test_a_last_line_cut_short_is_dropped(tmp_path: Path, tail: bytes, remedy: str | None) -> None:
    write_json_lines(tmp_path / "a", [{"n": 0}, {"n": 1}])
    with (tmp_path / "a").open("ab") as file:
        file.write(tail)
    assert read_json_lines(tmp_path / "a", remedy) == [{"n": 0}, {"n": 1}]


def test_a_last_line_that_lacks_only_its_end_is_kept(tmp_path: Path) -> None:
    (tmp_path / "a").write_text('{"n": 0}\n{"n": "\u2028"}', encoding="utf-8")
    assert read_json_lines(tmp_path / "a") == [{"n": 0}, {"n": "\u2028"}]


def test_damage_further_up_ends_the_lines_or_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_text('{"n": 0}\n{"n": \n{"n": 2}\n')
    assert read_json_lines(tmp_path / "a") == [{"n": 0}]
    with pytest.raises(UserError, match=r"a is damaged \(line 2 is not JSON\): write it again"):
        read_json_lines(tmp_path / "a", "write it again")
