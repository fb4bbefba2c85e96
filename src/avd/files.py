"""Reading and writing whole files, with errors a user can act on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from avd.types import UserError

PARTIAL_SUFFIX = ".partial"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name to write to inside the block, whose file then takes the place of `path`.

    A reader sees the old file or the whole new one, never a part. Makes the folders above `path`. The bytes reach the
    disk before the name does. A process killed half-way leaves at most a file whose name ends in `PARTIAL_SUFFIX`.
    Raises `UserError` where the system refuses.
    """
    partial = path.with_name(path.name + PARTIAL_SUFFIX)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(b"")
        mode = partial.stat().st_mode  # that the umask grants; some libraries write files for the owner's eyes only
        yield partial
        partial.chmod(mode)
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` to `path`, whole or not at all; see `replacing`."""
    with replacing(path) as partial:
        partial.write_bytes(data)


def check_can_make(path: Path) -> None:
    """Raise `UserError` unless there is a folder above `path` to make it in: for use before hours of work."""
    above = next(place for place in path.absolute().parents if place.exists())
    if not above.is_dir():
        raise UserError(f"cannot make {path}: {above} is a file")
    if not os.access(above, os.W_OK):
        raise UserError(f"cannot make {path}: {above} is not writable")


def read_text(path: Path) -> str:
    """The UTF-8 text of `path`, a byte-order mark dropped. Raises `UserError` if there is none to read."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    return as_text(data, str(path))


def as_text(data: bytes, name: str) -> str:
    """UTF-8 bytes as text, a byte-order mark dropped. Raises `UserError`, calling them `name`, if they are none."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{name} is not UTF-8 text (byte {error.start}): save it as UTF-8") from error
    if "\0" in text:
        raise UserError(f"{name} is a binary file: a UTF-8 text file is needed")
    return text
