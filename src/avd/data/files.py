"""Reading and writing whole files, with errors a user can act on."""

from __future__ import annotations

import os
from pathlib import Path

from avd.types import UserError

PARTIAL_SUFFIX = ".partial"


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` to `path` so that a reader sees the old file or the whole new one, never a part.

    Makes the folders above `path`. The bytes reach the disk before the name does. A process killed half-way leaves at
    most a file whose name ends in `PARTIAL_SUFFIX`. Raises `UserError` where the system refuses.
    """
    partial = path.with_name(path.name + PARTIAL_SUFFIX)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error


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
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start}): save it as UTF-8") from error
    if "\0" in text:
        raise UserError(f"{path} is a binary file: a UTF-8 text file is needed")
    return text
