"""Captions and prompts on disk.

A captions file is a table with a row a clip: JSONL (`{"file": "dog.mp4", "caption": "a dog runs over wet sand"}`), CSV,
TSV or Parquet; other columns are allowed and ignored. Captions may also stand beside the videos, `dog.txt` for
`dog.mp4`. A prompts file is plain text with one prompt a line, or JSONL with `caption` or `prompt`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

from avd.data.files import read_text, write_atomically
from avd.data.tables import Record, json_lines, read_records
from avd.types import UserError

FILE_COLUMNS = ("file", "path", "video", "video_path", "file_path", "filename", "file_name")
CAPTION_COLUMNS = ("caption", "text", "prompt", "description")


@dataclass(frozen=True)
class CaptionedFile:
    """A video file, named relative to the folder of videos with forward slashes, and what it shows."""

    file: str
    caption: str


def read_captions(
    path: str | Path, *, file_column: str | None = None, caption_column: str | None = None
) -> list[CaptionedFile]:
    """The captioned files of a table, in its order. See `tables.read_records` for the formats.

    A column that is not named is the first one of `FILE_COLUMNS`, or of `CAPTION_COLUMNS`, that the first record has.

    Raises `UserError`, with the line, for a broken record, a missing or empty file or caption, and a file named twice;
    and for a captions file that is unreadable or holds nothing.
    """
    path = Path(path)
    named_at: dict[str, str] = {}
    entries = []
    for place, record in read_records(path):
        where = f"{path}, {place}"
        file_column = file_column or _column(where, record, FILE_COLUMNS, "--file-column")
        caption_column = caption_column or _column(where, record, CAPTION_COLUMNS, "--caption-column")
        file = str(PurePosixPath(_field(where, record, file_column)))
        if file in named_at:
            raise UserError(f"{where}: {file!r} is on {named_at[file]} already: keep one of them")
        named_at[file] = place
        entries.append(CaptionedFile(file, _field(where, record, caption_column)))
    if not entries:
        raise UserError(f'{path} holds no captions: write lines like {{"file": "dog.mp4", "caption": "a dog runs"}}')
    return entries


def captions_beside(videos: Path, files: Iterable[str]) -> list[CaptionedFile]:
    """The captions of `files`, relative to the folder `videos`, that have a text file of the same name beside them.

    Raises `UserError` for a text file that is no text, and if no file has one.
    """
    entries = []
    for file in files:
        text = (videos / file).with_suffix(".txt")
        if text.is_file() and (caption := " ".join(read_text(text).split())):
            entries.append(CaptionedFile(file, caption))
    if not entries:
        raise UserError(f"no video in {videos} has a caption: name a table with --captions, or put dog.txt by dog.mp4")
    return entries


def write_captions(path: str | Path, entries: Iterable[CaptionedFile]) -> None:
    """Write a captions file that `read_captions` reads back."""
    lines = [json.dumps(asdict(entry), ensure_ascii=False) + "\n" for entry in entries]
    write_atomically(Path(path), "".join(lines).encode())


def read_prompts(path: str | Path) -> list[str]:
    """The prompts of a text file (one a line, blank lines skipped) or of a JSONL file (`caption` or `prompt`).

    The file is taken as JSONL when its first character that is not blank opens a JSON object, whatever it is called.
    Raises `UserError` if it is unreadable, binary or empty, or a JSONL line is broken.
    """
    path = Path(path)
    text = read_text(path)
    if text.lstrip().startswith("{"):
        prompts = [
            _field(f"{path}, {place}", record, "caption" if "caption" in record else "prompt")
            for place, record in json_lines(path, text)
        ]
    else:
        prompts = [line.strip() for line in text.split("\n") if line.strip()]
    if not prompts:
        raise UserError(f"{path} holds no prompts: write one a line")
    return prompts


def _column(where: str, record: Record, known: Sequence[str], option: str) -> str:
    for column in known:
        if column in record:
            return column
    raise UserError(f"{where}: no {known[0]!r} column, found {sorted(record)}: name it with {option}")


def _field(where: str, record: Record, key: str) -> str:
    if key not in record:
        raise UserError(f"{where}: no {key!r} key, found {sorted(record)}")
    value = record[key]
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{where}: {key!r} is {value!r}, a text that is not empty is needed")
    return value
