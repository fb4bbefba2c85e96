"""The count of the code's numbers, and which of it a run began with."""

from __future__ import annotations

from pathlib import Path

from avd.engine.run_folder import METRICS_FILE
from avd.files import read_json, write_json

NUMBERS = 2
"""Counts up whenever the numbers of training, sampling or measuring move on purpose; tests/test_numbers.py holds it to
the golden metrics. A row of another count describes what the code does no more."""
_FILE = "numbers.json"


def record_numbers(folder: Path) -> None:
    """Write down in a run's folder with which `NUMBERS` it begins; a run that has made an update keeps what it has."""
    if not (folder / METRICS_FILE).exists():
        write_json(folder / _FILE, {"numbers": NUMBERS})


def recorded_numbers(folder: Path) -> int | None:
    """The `NUMBERS` that the run in `folder` began with; None of before runs recorded it.

    Raises UserError for a damaged record.
    """
    if not (folder / _FILE).exists():
        return None
    found = read_json(folder / _FILE, "the record of a run's numbers", "name another output folder").get("numbers")
    return found if isinstance(found, int) else None
