"""Where a row comes from: the recipe beside a student."""

from __future__ import annotations

from pathlib import Path

import pytest

from avd.engine.run_folder import RECIPE_FILE
from avd.evaluation.provenance import recipe_of
from avd.types import UserError


def test_a_student_has_the_recipe_of_its_run(tmp_path: Path) -> None:
    (tmp_path / "student").mkdir()
    assert recipe_of(str(tmp_path / "student")) is None and recipe_of("wan-mini") is None
    (tmp_path / RECIPE_FILE).write_text("name: dmd\n")
    assert recipe_of(str(tmp_path / "student")) == {"name": "dmd"}


@pytest.mark.parametrize("text", [b"", b"- 1", b"name: [", b"\xff\xfe"])
def test_a_damaged_recipe_is_one_line(text: bytes, tmp_path: Path) -> None:
    (tmp_path / "student").mkdir()
    (tmp_path / RECIPE_FILE).write_bytes(text)
    with pytest.raises(UserError, match=RECIPE_FILE):
        recipe_of(str(tmp_path / "student"))
