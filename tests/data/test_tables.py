"""Captions in every form they come in: the same entries, or one line that says what is wrong."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from avd.data import CaptionedFile, read_captions
from avd.types import UserError

ENTRIES = [CaptionedFile("a/1.mp4", 'a "red" ball, rising'), CaptionedFile("2.mp4", "zwei Bälle\nim Wind")]


def write(path: Path, file: str = "file", caption: str = "caption", delimiter: str = ",") -> Path:
    rows = [{"id": i, file: entry.file, caption: entry.caption} for i, entry in enumerate(ENTRIES)]
    if path.suffix == ".parquet":
        pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        with path.open("w", newline="", encoding="utf-8-sig") as out:
            writer = csv.DictWriter(out, rows[0], delimiter=delimiter)
            writer.writeheader()
            writer.writerows(rows)
    return path


@pytest.mark.parametrize("name", ["c.jsonl", "c.csv", "c.tsv", "C.CSV", "c.parquet"])
@pytest.mark.parametrize(("file", "caption"), [("file", "caption"), ("video_path", "text"), ("path", "prompt")])
def test_columns_are_found_by_their_usual_names(tmp_path: Path, name: str, file: str, caption: str) -> None:
    assert read_captions(write(tmp_path / name, file, caption)) == ENTRIES


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_delimiter_is_found(tmp_path: Path, delimiter: str) -> None:
    assert read_captions(write(tmp_path / "c.csv", delimiter=delimiter)) == ENTRIES


def test_named_columns_win(tmp_path: Path) -> None:
    path = write(tmp_path / "c.csv", "clip", "what is seen")
    assert read_captions(path, file_column="clip", caption_column="what is seen") == ENTRIES
    with pytest.raises(UserError, match=r"line 2: no 'file' column, found .*'clip'.*--file-column"):
        read_captions(path)
    with pytest.raises(UserError, match=r"line 2: no 'clp' key"):
        read_captions(path, file_column="clp", caption_column="id")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,caption\na.mp4,a ball\nb.mp4\n", r"line 3: 'caption' is None"),
        ("file,caption\na.mp4,a ball, rising\n", r"line 2: more columns than the header has"),
        ('file,caption\na.mp4,"a ball\n', r"broken CSV"),
        ("file,caption\na.mp4,one\na.mp4,two\n", r"line 3: 'a.mp4' is on line 2 already"),
        ("file,caption\n", r"holds no captions"),
        ("", r"holds no captions"),
    ],
)
def test_a_bad_table_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "c.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        read_captions(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_that_is_no_parquet_is_one_line(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    path = tmp_path / "c.parquet"
    with pytest.raises(UserError, match="cannot read"):
        read_captions(path)
    path.write_text("file,caption\n")
    with pytest.raises(UserError, match="cannot be read as Parquet"):
        read_captions(path)
