"""What there is to prepare: videos with their captions, and what is left out before any is opened."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from avd.data.cache import Skip
from avd.data.captions import CAPTIONS_FILE, caption_beside, read_captions
from avd.data.video.shards import SUFFIX
from avd.data.video.sources import VIDEO_SUFFIXES, Found, VideoSource, find, locate_video
from avd.types import UserError

_LONGEST = 1 << 20
"""Bytes of a text beside a video; a longer one is no caption."""


@dataclass(frozen=True, slots=True)
class Captioned:
    """A video and what it shows."""

    source: VideoSource
    caption: str


Planned = Captioned | Skip


def plan(videos: Path, captions: Path | None, file_column: str | None, caption_column: str | None) -> list[Planned]:
    """The captioned videos of a folder or tar, in the order of their table or else of their names, and what is skipped.

    Raises `UserError` if there is no such place, for a table that cannot be read, and if no video has a caption. A few
    hundred bytes per video are held in memory, and no video is opened.
    """
    if not videos.is_dir() and not (videos.is_file() and videos.suffix.lower() == SUFFIX):
        what = f"it is not a {SUFFIX} file" if videos.is_file() else "there is no such folder"
        raise UserError(f"no videos at {videos}: {what}")
    folder = videos if videos.is_dir() else videos.parent
    table = captions or (videos / CAPTIONS_FILE if (videos / CAPTIONS_FILE).is_file() else None)
    if table is not None:
        entries = read_captions(table, file_column=file_column, caption_column=caption_column)
        planned: list[Planned] = [Captioned(locate_video(folder, entry.file), entry.caption) for entry in entries]
        return planned + list(_unnamed(videos, {entry.file for entry in entries}))
    planned = [found if isinstance(found, Skip) else _with_sidecar(found) for found in find(videos)]
    if not planned:
        raise UserError(f"there are no videos in {videos}: name a folder with {', '.join(sorted(VIDEO_SUFFIXES))}")
    if not any(isinstance(each, Captioned) or each.reason != "no caption" for each in planned):
        raise UserError(
            f"no video in {videos} has a caption: name a table with --captions, or put dog.txt beside dog.mp4"
        )
    return planned


def _unnamed(videos: Path, named: set[str]) -> Iterator[Skip]:
    for found in find(videos):
        if isinstance(found, Skip):
            yield found
        elif found.video.name not in named:
            yield Skip(found.video.name, "no caption", "no caption names it")


def _with_sidecar(found: Found) -> Planned:
    name = found.video.name
    if found.sidecar is None:
        return Skip(name, "no caption", "no text file is beside it")
    try:
        with found.sidecar.open() as file:
            data = file.read(_LONGEST + 1)
        if len(data) > _LONGEST:
            raise UserError(f"{found.sidecar.name} is too long for a caption")
        caption = caption_beside(found.sidecar.name, data)
    except UserError as error:
        return Skip(name, "unreadable caption", str(error))
    except OSError as error:
        return Skip(name, "unreadable caption", f"cannot read {found.sidecar.name}: {error.strerror or error}")
    if not caption:
        return Skip(name, "empty caption", f"{found.sidecar.name} contains no words")
    return Captioned(found.video, caption)
