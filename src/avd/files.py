"""Files and folders on disk: the one atomic write, the one atomic folder, the one lock and the checked reads.

Whatever is not finished has a name that `is_unfinished` recognises. It lies beside its place and takes that place by a
rename, so a reader, or a process killed at any moment, finds the old content or the new, never a part. Bytes reach the
disk before the name does.

Errors of the system become `UserError` where a single file is concerned. A folder is written by other libraries too:
there an OSError, a full disk for example, passes as it is.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avd.types import UserError

if TYPE_CHECKING:
    from filelock import FileLock

LOCK_FILE = ".lock"
PATIENCE = 30.0
"""Seconds that a file which another machine has written may take to be seen here."""
_ENDING = ".writing"
_EARLIER_ENDINGS, _EARLIER_START = (".partial", ".part"), ".writing-"
"""What earlier versions called unfinished files and checkpoints; folders of theirs may still hold some."""


# Unfinished files and folders


def unfinished(path: Path) -> Path:
    """The name beside `path` under which it is written."""
    return path.with_name(path.name + _ENDING)


def is_unfinished(path: Path) -> bool:
    """Whether `path` is what a write cut short has left, judged by its name."""
    return path.name.endswith((_ENDING, *_EARLIER_ENDINGS)) or path.name.startswith(_EARLIER_START)


def clear_unfinished(folder: Path) -> None:
    """Remove all unfinished files and folders directly under `folder`, which may be missing."""
    for stale in [entry for entry in folder.glob("*") if is_unfinished(entry)]:
        if stale.is_dir():
            shutil.rmtree(stale)
        else:
            stale.unlink()


def wait_until(seen: Callable[[], bool]) -> bool:
    """Whether `seen` becomes true within `PATIENCE`: network file systems show files of other machines late."""
    end = time.monotonic() + PATIENCE
    while not seen():
        if time.monotonic() >= end:
            return False
        time.sleep(0.1)
    return True


def sync(path: Path) -> None:
    """Wait until the content of a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# Writing a file


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name to write to inside the block, whose file then takes the place of `path`.

    Makes the folders above `path`. If the block raises, `path` stays as it was. Raises `UserError` where the system
    refuses.
    """
    writing = unfinished(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        writing.write_bytes(b"")
        mode = writing.stat().st_mode  # that the umask grants; some libraries write files for the owner's eyes only
        yield writing
        writing.chmod(mode)
        sync(writing)
        os.replace(writing, path)
        sync(path.parent)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` to `path`; see `replacing`."""
    with replacing(path) as writing:
        writing.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` as UTF-8; see `replacing`."""
    write_atomically(path, text.encode())


def write_json(path: Path, value: Any, *, indent: int = 2, sort_keys: bool = False, ascii_only: bool = True) -> None:
    """Write `value` to `path` as JSON; see `replacing`. Numbers that are not finite become null."""
    write_text(path, _as_json(value, indent=indent, sort_keys=sort_keys, ensure_ascii=ascii_only))


def write_json_lines(path: Path, values: Iterable[Any], *, ascii_only: bool = True) -> None:
    """Write `values` to `path` as JSON, one per line; see `replacing`. Numbers that are not finite become null."""
    write_text(path, "".join(_as_json(value, ensure_ascii=ascii_only) for value in values))


def append_json_line(path: Path, value: Any, *, durable: bool = False) -> None:
    """Append a line of JSON to `path`, and if `durable` wait until it is on the disk.

    Numbers that are not finite become null: JSON has no other word for them. A process killed meanwhile leaves at most
    a last line cut short, which `read_json_lines` drops. Raises `UserError` where the system refuses.
    """
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(_as_json(value))
            if durable:
                file.flush()
                os.fsync(file.fileno())
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error


def check_can_make(path: Path) -> None:
    """Raise `UserError` unless there is a folder above `path` to make it in: for use before hours of work."""
    above = next(place for place in path.absolute().parents if place.exists())
    if not above.is_dir():
        raise UserError(f"cannot make {path}: {above} is a file")
    if not os.access(above, os.W_OK):
        raise UserError(f"cannot make {path}: {above} is not writable")


def _as_json(value: Any, **options: Any) -> str:
    return json.dumps(_finite(value), allow_nan=False, **options) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return value


# Writing a folder


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """An empty folder to write into; once the block has ended without an error it takes the place of `path`.

    A process killed at any moment leaves either the old folder or the new one, or, for the instant between two
    renames, both under names that the next try clears away.
    """
    writing = unfinished(path)
    for stale in (writing, _old(path)):
        shutil.rmtree(stale, ignore_errors=True)
    writing.mkdir(parents=True)
    try:
        yield writing
        for part in writing.rglob("*"):
            sync(part)
        replace_folder(writing, path)
    finally:
        shutil.rmtree(writing, ignore_errors=True)


def replace_folder(new: Path, path: Path) -> None:
    """Rename the folder `new`, whose files are on the disk, to `path`, and remove an older folder there."""
    old = _set_aside(path) if path.exists() else None
    sync(new)
    os.replace(new, path)
    sync(path.parent)
    if old is not None:
        shutil.rmtree(old)


def remove_folder(path: Path) -> None:
    """Remove a folder so that it is never found under its name with half of its files gone."""
    shutil.rmtree(_set_aside(path))


def _old(path: Path) -> Path:
    return unfinished(path.with_name(path.name + ".old"))


def _set_aside(path: Path) -> Path:
    """Rename a folder to a name of unfinished folders, and return that."""
    old = _old(path)
    if old.exists():  # since a removal cut short
        shutil.rmtree(old)
    os.replace(path, old)
    return old


class FolderInUse(UserError):
    """A folder that another process holds."""


class FolderLock:
    """Keeps a folder to one process, from `acquire` to `release` or the process's end, however it ends.

    The folder must exist when it is acquired. `name` is what errors call it.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self._folder, self._name = folder, name
        self._lock: FileLock | None = None

    def acquire(self) -> None:
        """Acquiring twice does no harm. Raises `FolderInUse` if another process holds the folder."""
        from filelock import FileLock, Timeout  # loads asyncio, which most users of this module do not need

        self._lock = self._lock or FileLock(self._folder / LOCK_FILE, timeout=0)
        try:
            self._lock.acquire()
        except Timeout:
            raise FolderInUse(f"another process is writing into {self._name}: wait for it or end it") from None

    def release(self) -> None:
        """Let another process acquire the folder. Without effect if it is not held."""
        if self._lock is not None:
            self._lock.release(force=True)


# Reading


def read_text(path: Path) -> str:
    """The UTF-8 text of `path`, a byte-order mark dropped. Raises `UserError` if there is none to read."""
    return as_text(_read_bytes(path), str(path))


def as_text(data: bytes, name: str) -> str:
    """UTF-8 bytes as text, a byte-order mark dropped. Raises `UserError`, calling them `name`, if they are none."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{name} is not UTF-8 text (byte {error.start}): save it as UTF-8") from error
    if "\0" in text:
        raise UserError(f"{name} is a binary file: a UTF-8 text file is needed")
    return text


def read_json(path: Path, what: str, remedy: str) -> dict[str, Any]:
    """The JSON object in `path`.

    Raises `UserError` if there is none: "`what` `path` is damaged (why): `remedy`".
    """
    data = _read_bytes(path)
    try:
        value = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{what} {path} is damaged ({reason}): {remedy}") from error
    if not isinstance(value, dict):
        raise UserError(f"{what} {path} is damaged (it holds a {type(value).__name__}, not an object): {remedy}")
    return value


def read_json_lines(path: Path, remedy: str | None = None) -> list[Any]:
    """The values on the lines of `path`, up to the first that is not JSON.

    A crash cuts the last line short, or leaves zeros in its place. With a `remedy` only an unterminated last line is
    dropped, and any other that is not JSON raises `UserError`. Raises `UserError` if the file cannot be read.
    """
    lines = _read_bytes(path).split(b"\n")
    values = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            values.append(json.loads(line.decode()))
        except ValueError as error:
            if remedy is not None and number < len(lines):
                raise UserError(f"{path} is damaged (line {number} is not JSON): {remedy}") from error
            break
    return values


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
