"""Where videos are: files and folders of pictures in a tree, and members of tar archives, read in place."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Set
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from avd.data.cache import Skip
from avd.data.video.images import numbered_pictures
from avd.data.video.shards import COMPRESSED, SUFFIX, Span, TarIndex, index_tar, open_span

VIDEO_SUFFIXES = {".avi", ".gif", ".m4v", ".mkv", ".mov", ".mp4", ".webm"}
SIDECAR_SUFFIXES = (".txt", ".json")
"""Where a caption is looked for beside a video, the first that is there."""


@dataclass(frozen=True, slots=True)
class VideoSource:
    """A video, or a text beside one: a file, a folder of pictures, or the member of a tar that is at `span` in it.

    `name` is relative to what was searched, with forward slashes; a tar counts as a folder.
    """

    name: str
    path: Path
    span: Span | None = None

    @property
    def is_folder(self) -> bool:
        return self.span is None and os.path.isdir(self.path)

    def open(self) -> BinaryIO:
        """The bytes. Raises `OSError` if there are none to read: of a pipe or a device one would wait for ever."""
        if not stat.S_ISREG(self.path.stat().st_mode):
            raise OSError("it is a pipe or a device")
        return self.path.open("rb") if self.span is None else open_span(self.path, self.span)


@dataclass(frozen=True, slots=True)
class Found:
    """A video, and the text beside it that may be its caption."""

    video: VideoSource
    sidecar: VideoSource | None


def find(place: Path) -> Iterator[Found | Skip]:
    """The videos anywhere under a folder, or in a tar, sorted by name within each folder, and what cannot be searched.

    Videos are files with one of `VIDEO_SUFFIXES`, the same in `.tar` files, and folders of two or more numbered
    pictures and no video. Links to folders are followed, into each folder once. Hidden files are left alone.
    """
    if os.path.isdir(place):
        yield from _in_folder(place, "", set())
    else:
        yield from _in_tar(place, place.name)


def locate_video(folder: Path, name: str) -> VideoSource:
    """The video that a table calls `name`; it need not exist."""
    for archive in PurePosixPath(name).parents:
        if archive.suffix.lower() == SUFFIX and (folder / archive).is_file():
            path, member = folder / archive, PurePosixPath(name).relative_to(archive)
            span = _cached_index(path, path.stat().st_mtime_ns).members.get(str(member))
            return VideoSource(name, folder / name if span is None else path, span)
    return VideoSource(name, folder / name)


def _in_folder(folder: Path, prefix: str, entered: set[tuple[int, int]]) -> Iterator[Found | Skip]:
    try:
        status = folder.stat()
        names = {name for name in os.listdir(folder) if not name.startswith(".")}
    except OSError as error:
        yield Skip(prefix or ".", "unreadable", f"cannot be searched: {error.strerror}")
        return
    if (status.st_dev, status.st_ino) in entered:
        return
    entered.add((status.st_dev, status.st_ino))
    for name in sorted(names):
        path, suffix = folder / name, PurePosixPath(name).suffix.lower()
        if not _is_text(name):
            yield Skip(_shown(prefix + name), "unreadable name", "its name is not UTF-8")
        elif os.path.isdir(path):
            if _holds_pictures_only(path):
                yield Found(VideoSource(prefix + name, path), _beside(folder, prefix, name, names))
            yield from _in_folder(path, f"{prefix}{name}/", entered)
        elif suffix == SUFFIX:
            yield from _in_tar(path, prefix + name)
        elif name.lower().endswith(COMPRESSED):
            yield Skip(prefix + name, "compressed tar", "its members cannot be reached: unpack it to .tar")
        elif suffix in VIDEO_SUFFIXES:
            yield Found(VideoSource(prefix + name, path), _beside(folder, prefix, PurePosixPath(name).stem, names))


def _in_tar(path: Path, name: str) -> Iterator[Found | Skip]:
    index = index_tar(path)
    for member, span in index.members.items():
        inner = PurePosixPath(member)
        if not _is_text(member):
            yield Skip(_shown(f"{name}/{member}"), "unreadable name", "its name is not UTF-8")
        elif inner.suffix.lower() in VIDEO_SUFFIXES and not any(part.startswith(".") for part in inner.parts):
            texts = (str(inner.with_suffix(suffix)) for suffix in SIDECAR_SUFFIXES)
            sidecar = next((text for text in texts if text in index.members), None)
            yield Found(
                VideoSource(f"{name}/{member}", path, span),
                None if sidecar is None else VideoSource(f"{name}/{sidecar}", path, index.members[sidecar]),
            )
    for trouble in index.troubles:
        yield Skip(name, "damaged tar", trouble)


@lru_cache(maxsize=2)  # a table mostly names the members of one archive after another
def _cached_index(path: Path, changed: int) -> TarIndex:
    return index_tar(path)


def _beside(folder: Path, prefix: str, stem: str, names: Set[str]) -> VideoSource | None:
    text = next((stem + suffix for suffix in SIDECAR_SUFFIXES if stem + suffix in names), None)
    return None if text is None else VideoSource(prefix + text, folder / text)


def _holds_pictures_only(folder: Path) -> bool:
    try:
        names = os.listdir(folder)
        several = len(numbered_pictures(names)) > 1
    except OSError:
        return False
    except ValueError:  # pictures, though in no clear order: to be reported when read
        several = True
    return several and not any(PurePosixPath(name).suffix.lower() in {*VIDEO_SUFFIXES, SUFFIX} for name in names)


def _is_text(name: str) -> bool:
    """False for a name with bytes that are not UTF-8, which Python keeps as lone surrogates."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _shown(name: str) -> str:
    return name.encode("utf-8", "backslashreplace").decode()
