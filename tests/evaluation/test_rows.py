from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import ValidationError

from avd.report import Results, Row, read_results, write_results
from avd.types import UserError

MakeRow = Callable[..., Row]


def test_results_survive_the_file(tmp_path: Path, make_row: MakeRow) -> None:
    results = Results(rows=[make_row(), make_row(name="rendered", recipe=None)], meta={"budget": "smoke"})
    write_results(tmp_path / "new" / "results.json", results)
    assert read_results(tmp_path / "new" / "results.json") == results
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["results.json"]


@pytest.mark.parametrize(
    "changes", [{"flicker": float("nan")}, {"dynamic_degree": 75.0}, {"videos": -1}, {"flickr": 0.0}, {"name": None}]
)
def test_a_row_refuses_what_is_no_measure(make_row: MakeRow, changes: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        make_row(**changes)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent\.json"):
        read_results(tmp_path / "absent.json")


@pytest.mark.parametrize("text", ["", "[]", '{"rows": [{"name": "DMD"}]}'])
def test_a_foreign_file_is_one_clear_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "results.json"
    path.write_text(text)
    with pytest.raises(UserError, match="does not hold results") as caught:
        read_results(path)
    assert "\n" not in str(caught.value)
