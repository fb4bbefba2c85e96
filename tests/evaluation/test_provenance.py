"""Where a row comes from: the recipe beside a student."""

from __future__ import annotations

from pathlib import Path

import pytest

from avd.distillation.numbers import NUMBERS, record_numbers
from avd.distillation.saved_student import SETTINGS_OF_RUN
from avd.engine.run_folder import METRICS_FILE, RECIPE_FILE
from avd.evaluation.provenance import numbers_of, recipe_of
from avd.types import UserError


def test_a_student_has_the_recipe_of_its_run(tmp_path: Path) -> None:
    (tmp_path / "student").mkdir()
    assert recipe_of(str(tmp_path / "student")) is None and recipe_of("wan-mini") is None
    (tmp_path / RECIPE_FILE).write_text("name: dmd\n")
    assert recipe_of(str(tmp_path / "student")) == {"name": "dmd"}


def test_a_student_has_the_numbers_that_its_run_began_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    student = tmp_path / "student"
    student.mkdir()
    assert numbers_of(str(student)) == numbers_of("wan-mini") == NUMBERS
    for name in (RECIPE_FILE, SETTINGS_OF_RUN):
        (tmp_path / name).write_text("{}")
    assert numbers_of(str(student)) is None  # a run of before there was a record
    record_numbers(tmp_path)
    (tmp_path / METRICS_FILE).write_text("")
    monkeypatch.setattr("avd.distillation.numbers.NUMBERS", NUMBERS + 1)
    record_numbers(tmp_path)  # resumed by newer code
    assert numbers_of(str(student)) == NUMBERS


@pytest.mark.parametrize("text", [b"", b"- 1", b"name: [", b"\xff\xfe"])
def test_a_damaged_recipe_is_one_line(text: bytes, tmp_path: Path) -> None:
    (tmp_path / "student").mkdir()
    (tmp_path / RECIPE_FILE).write_bytes(text)
    with pytest.raises(UserError, match=RECIPE_FILE):
        recipe_of(str(tmp_path / "student"))
