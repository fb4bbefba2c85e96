"""Rows that describe what the code or their teacher is no more."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from avd.distillation.numbers import NUMBERS
from avd.evaluation.provenance import teacher_of
from avd.evaluation.rows import Row
from avd.evaluation.staleness import stale_reasons
from helpers.tiny import tiny_model

MakeRow = Callable[..., Row]


def reason(row: Row) -> str | None:
    return stale_reasons([row]).get(row.name)


def test_rows_of_other_numbers_are_stale(make_row: MakeRow) -> None:
    assert reason(make_row(numbers=NUMBERS)) is None
    assert f"version {NUMBERS - 1}," in str(reason(make_row(numbers=NUMBERS - 1)))
    assert "before" in str(reason(make_row()))


def test_what_depends_on_no_weights_is_never_stale(make_row: MakeRow) -> None:
    assert reason(make_row(steps=0, network_calls=0)) is None
    assert reason(make_row(steps=None, network_calls=None, recipe=None)) is None


def test_a_row_whose_teacher_has_other_weights_is_stale(make_row: MakeRow, tmp_path: Path) -> None:
    folder = tmp_path / "teacher"
    model = tiny_model()
    model.save(folder)
    recipe: dict[str, Any] = {"model": str(folder)}
    teacher = teacher_of("a student", recipe)
    assert teacher is not None and teacher == teacher_of(str(folder), None)
    row = make_row(recipe=recipe, teacher=teacher, numbers=NUMBERS)
    assert reason(row) is None
    with torch.no_grad():
        next(model.transformer.parameters()).add_(1.0)
    model.save(folder)
    assert "other weights" in str(reason(row))
    assert reason(make_row(teacher=teacher.model_copy(update={"model": "gone/away"}), numbers=NUMBERS)) is None


def test_a_larger_teacher_is_the_one_that_counts(tmp_path: Path) -> None:
    tiny_model(seed=1).save(tmp_path / "larger")
    recipe = {"model": "wan-mini", "teacher": str(tmp_path / "larger")}
    found = teacher_of("a student", recipe)
    assert found is not None and found.model == recipe["teacher"]
    assert teacher_of("a student", {"model": "owner/model"}) is None  # nothing is fetched
