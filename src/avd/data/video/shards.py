"""Tar archives, WebDataset's shards among them, read in place: where each member's bytes are.

Nothing is unpacked. An archive's headers are read once, which takes a seek a member; a member is then read through
`open_span`, by any process.
"""

from __future__ import annotations

import io
import tarfile
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import BinaryIO, cast

SUFFIX = ".tar"
COMPRESSED = (".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")
_BLOCK = tarfile.BLOCKSIZE

Span = tuple[int, int]
"""First byte of a member in its archive, and the number of its bytes."""


@dataclass
class TarIndex:
    """The files of an archive by name, in its order, and in a sentence each what of it could not be read."""

    members: dict[str, Span] = field(default_factory=dict)
    troubles: list[str] = field(default_factory=list)


def index_tar(path: Path) -> TarIndex:
    """Where the files of an archive are. Never raises: what is damaged is listed in `troubles`, the rest is indexed.

    If two members have one name, the later counts, as if they had been unpacked.
    """
    index = TarIndex()
    end = 0  # of what has been read so far
    try:
        if not path.is_file():
            raise OSError("it is a pipe or a device")
        with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            tar.ignore_zeros = True  # after a damaged header look for the next intact one
            for member in tar:
                _note_gap(index, file, end, member.offset)
                end = member.offset_data + -(-member.size // _BLOCK) * _BLOCK if member.isreg() else member.offset_data
                name = str(PurePosixPath(member.name))
                if member.isreg() and not member.issparse():
                    index.members[name] = (member.offset_data, member.size)
                elif member.islnk() and (target := str(PurePosixPath(member.linkname))) in index.members:
                    index.members[name] = index.members[target]
            _note_gap(index, file, end, None)
    except (tarfile.TarError, OSError, EOFError, ValueError, OverflowError) as error:
        index.troubles.append(f"after byte {end} it cannot be read: {' '.join(str(error).split())}")
    return index


def open_span(path: Path, span: Span) -> BinaryIO:
    """A part of a file as a file."""
    return cast(BinaryIO, io.BufferedReader(_Span(path, span)))


def _note_gap(index: TarIndex, file: BinaryIO, end: int, following: int | None) -> None:
    """Between members, and after the last, only zeros belong; anything else is what a damaged header named."""
    if following is not None and following <= end:
        return
    position = file.tell()
    file.seek(end)
    block = file.read(_BLOCK)
    file.seek(position)
    if any(block):
        last = next(reversed(index.members), None)
        after = "" if last is None else f", after {last},"
        index.troubles.append(f"the header at byte {end}{after} is damaged, and what it named lost")


class _Span(io.RawIOBase):
    def __init__(self, path: Path, span: Span) -> None:
        self._start, self._size = span
        self._position = 0
        self._file = path.open("rb", buffering=0)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        wanted = max(0, min(len(buffer), self._size - self._position))
        self._file.seek(self._start + self._position)
        count = self._file.readinto(memoryview(buffer)[:wanted]) or 0
        if wanted and not count:
            raise OSError("the archive ends in the middle of it")
        self._position += count
        return count

    def close(self) -> None:
        self._file.close()
        super().close()
