"""Tables on disk, one record at a time: JSONL, CSV, TSV and Parquet, distinguished by the file's suffix."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from avd.files import read_text
from avd.types import UserError

Record = dict[str, Any]
Placed = tuple[str, Record]
"""Where a record stands, such as "line 3", and what it holds."""

_DELIMITERS = ",;\t|"


def read_records(path: Path) -> Iterator[Placed]:
    """The records of a table, in its order.

    `.csv` and `.tsv` need a header line, whose most frequent of comma, semicolon, tab and bar is taken to part columns;
    `.parquet` needs pyarrow; any other suffix is read as JSONL, an object a line.

    Raises `UserError`, with the place, for a file that cannot be read as what it is.
    """
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return _parquet(path)
    text = read_text(path)
    return _delimited(path, text) if suffix in {".csv", ".tsv"} else json_lines(path, text)


def json_lines(path: Path, text: str) -> Iterator[Placed]:
    """The JSON object on each line of `text` that is not blank. `path` is named in errors."""
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
        yield f"line {number}", record


def _delimited(path: Path, text: str) -> Iterator[Placed]:
    header = text.lstrip("\n").partition("\n")[0]
    reader = csv.DictReader(io.StringIO(text), delimiter=max(_DELIMITERS, key=header.count), strict=True)
    try:
        for record in reader:
            if None in record:
                raise UserError(f"{path}, line {reader.line_num}: more columns than the header has: quote the caption")
            yield f"line {reader.line_num}", {key.strip(): value for key, value in record.items()}
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: broken CSV ({error})") from error


def _parquet(path: Path) -> Iterator[Placed]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise UserError(f"{path} needs pyarrow: pip install 'avd[parquet]', or write the captions as CSV") from None
    if not path.is_file():
        raise UserError(f"cannot read {path}: No such file or directory")
    try:
        with parquet.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches():
                for record in batch.to_pylist():
                    number += 1
                    yield f"row {number}", record
    except (ArrowException, OSError) as error:
        raise UserError(f"{path} cannot be read as Parquet ({error})") from error
