"""Rows and their file, today's and that of before there were suites."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import ValidationError

from avd.report import Results, Row, read_results, write_results
from avd.types import UserError

MakeRow = Callable[..., Row]

OLD = """\
{
  "rows": [
    {
      "name": "wan-mini",
      "steps": 4,
      "network_calls": 8,
      "seconds_per_video": 0.12674703365625106,
      "saturation_error": 0.02547889846759362,
      "saturation_signed": -0.021242109716322014,
      "clipped_share": 0.0,
      "dynamic_degree": 0.6,
      "speed_ratio": 0.9862850707766342,
      "instance_preservation": 0.6,
      "caption_accuracy": 0.7440476190476191,
      "flicker": 0.007031764673735089,
      "videos": 20,
      "seed": 3,
      "recipe": null,
      "code_version": "0.1.0+8e302e1",
      "machine": "x86_64, 2 cores",
      "diversity": {
        "colour": 0.5,
        "speed": 0.6,
        "direction": 0.3333333333333333
      }
    }
  ],
  "meta": {}
}
"""
"""What `avd evaluate wan-mini` wrote when a row's measures were its fields."""


def test_results_survive_the_file(tmp_path: Path, make_row: MakeRow) -> None:
    results = Results(rows=[make_row(), make_row(name="rendered", recipe=None)], meta={"budget": "smoke"})
    write_results(tmp_path / "new" / "results.json", results)
    assert read_results(tmp_path / "new" / "results.json") == results
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["results.json"]


@pytest.mark.parametrize(
    "changes",
    [
        {"flicker": float("nan")},
        {"dynamic_degree": 75.0},
        {"videos": -1},
        {"flickr": 0.0},
        {"name": None},
        {"speed_ratio": -0.1},
        {"scores": {"moon": {"phase": 0.5}}},
    ],
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


def test_old_files_are_read(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text(OLD)
    (row,) = read_results(path).rows
    (old,) = json.loads(OLD)["rows"]
    common = {
        "name",
        "steps",
        "network_calls",
        "seconds_per_video",
        "videos",
        "seed",
        "recipe",
        "code_version",
        "machine",
    }
    assert {key: getattr(row, key) for key in common} == {key: old[key] for key in common}
    measures = {key: value for key, value in old.items() if key not in common and key != "diversity"}
    assert row.scores == {"world": measures | {f"diversity_{key}": value for key, value in old["diversity"].items()}}
    assert row.score("world", "speed_ratio") == 0.9862850707766342
    write_results(path, Results(rows=[row]))
    assert read_results(path).rows == [row]


@pytest.mark.parametrize("diversity", [None, {"colour": None, "speed": 0.5}])
def test_old_rows_without_diversity_are_read(diversity: object, tmp_path: Path) -> None:
    results = json.loads(OLD)
    results["rows"][0]["diversity"] = diversity
    (tmp_path / "results.json").write_text(json.dumps(results))
    (row,) = read_results(tmp_path / "results.json").rows
    assert row.score("world", "diversity_colour") is None
    assert row.score("world", "diversity_speed") == (0.5 if diversity else None)


def test_an_old_row_with_a_field_too_many_is_refused(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(OLD.replace('"flicker"', '"flickr"'))
    with pytest.raises(UserError, match="does not hold results"):
        read_results(tmp_path / "results.json")
