"""Captions and prompts on disk.

A captions file is JSONL, one clip a line: `{"file": "dog.mp4", "caption": "a dog runs over wet sand"}`; other keys are
allowed and ignored. A prompts file is plain text with one prompt a line, or JSONL with `caption` or `prompt`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from avd.data.files import read_text, write_atomically
from avd.types import UserError


@dataclass(frozen=True)
class CaptionedFile:
    """A video file, named relative to the folder of videos with forward slashes, and what it shows."""

    file: str
    caption: str


def read_captions(path: str | Path) -> list[CaptionedFile]:
    """The captioned files of a JSONL file, in its order.

    Raises `UserError`, with the line number, for broken JSON, a missing or empty `file` or `caption`, and a file named
    twice; and for a captions file that is unreadable or holds nothing.
    """
    path = Path(path)
    first_line: dict[str, int] = {}
    entries = []
    for number, record in _json_lines(path, read_text(path)):
        file = str(PurePosixPath(_field(path, number, record, "file")))
        if file in first_line:
            raise UserError(f"{path}, line {number}: {file!r} is on line {first_line[file]} already: keep one of them")
        first_line[file] = number
        entries.append(CaptionedFile(file, _field(path, number, record, "caption")))
    if not entries:
        raise UserError(f'{path} holds no captions: write lines like {{"file": "dog.mp4", "caption": "a dog runs"}}')
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
            _field(path, number, record, "caption" if "caption" in record else "prompt")
            for number, record in _json_lines(path, text)
        ]
    else:
        prompts = [line.strip() for line in text.split("\n") if line.strip()]
    if not prompts:
        raise UserError(f"{path} holds no prompts: write one a line")
    return prompts


def _json_lines(path: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line numbers from 1 and the JSON object on each line that is not blank."""
    # Only "\n" ends a line: str.splitlines would also cut inside strings, at characters that JSON leaves unescaped.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}, line {number}: broken JSON ({error.msg}, column {error.colno})") from error
        if not isinstance(record, dict):
            raise UserError(f"{path}, line {number}: a JSON object is needed, found {type(record).__name__}")
        yield number, record


def _field(path: Path, number: int, record: dict[str, Any], key: str) -> str:
    if key not in record:
        raise UserError(f"{path}, line {number}: no {key!r} key, found {sorted(record)}")
    value = record[key]
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{path}, line {number}: {key!r} is {value!r}, a text that is not empty is needed")
    return value
