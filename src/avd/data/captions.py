"""Captions and prompts on disk.

A captions file is a table with one row per clip: JSONL (`{"file": "dog.mp4", "caption": "a dog runs over wet sand"}`),
CSV, TSV or Parquet; other columns are allowed and ignored. Captions may also stand beside the videos, `dog.txt` or
`dog.json` for `dog.mp4`. A prompts file is plain text with one prompt per line, or JSONL with `caption` or `prompt`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

from avd.data.tables import Record, json_lines, read_records
from avd.files import as_text, read_text, write_json_lines
from avd.types import UserError

CAPTIONS_FILE = "captions.jsonl"
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


def caption_beside(name: str, data: bytes) -> str:
    """The caption in the bytes of a text called `name` that stands beside a video, its lines joined; may be empty.

    A `.json` is an object with one of `CAPTION_COLUMNS`; any other is plain text. Raises `UserError` if it is not.
    """
    text = as_text(data, name)
    if name.lower().endswith(".json"):
        try:
            record = json.loads(text)
        except json.JSONDecodeError as error:
            raise UserError(f"{name}: broken JSON ({error.msg}, line {error.lineno})") from error
        found = [record[key] for key in CAPTION_COLUMNS if key in record] if isinstance(record, dict) else []
        if not found or not isinstance(found[0], str):
            raise UserError(f"{name}: an object with a text 'caption' is needed")
        text = _checked_text(name, found[0])
    return " ".join(text.split())


def write_captions(path: str | Path, entries: Iterable[CaptionedFile]) -> None:
    """Write a captions file that `read_captions` reads back."""
    write_json_lines(Path(path), (asdict(entry) for entry in entries), ascii_only=False)


def read_prompts(path: str | Path, *, keys: Sequence[str] = ("caption", "prompt")) -> list[str]:
    """The prompts of a text file (one per line, blank lines skipped) or of a JSONL file (the first of `keys` it has).

    The file is taken as JSONL when its first character that is not blank opens a JSON object, whatever it is called.
    Raises `UserError` if it is unreadable, binary or empty, or a JSONL line is broken.
    """
    path = Path(path)
    text = read_text(path)
    if text.lstrip().startswith("{"):
        prompts = [
            _field(f"{path}, {place}", record, next((key for key in keys if key in record), keys[-1]))
            for place, record in json_lines(path, text)
        ]
    else:
        prompts = [line.strip() for line in text.split("\n") if line.strip()]
    if not prompts:
        raise UserError(f"{path} holds no prompts: write one per line")
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
        raise UserError(f"{where}: {key!r} is {value!r}, a non-empty text is needed")
    return _checked_text(where, value)


def _checked_text(where: str, text: str) -> str:
    """JSON can escape half of a character, which no file and no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{where}: {text!r} holds an incomplete character: write it as UTF-8") from error
    return text
