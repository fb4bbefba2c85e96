"""Rows of different protocols do not stand in one table unless the user asks for it, and partial rows say so."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from avd.evaluation.rows import Results, Row, read_results, write_results
from avd.evaluation.suites.vbench import VBench
from avd.report import markdown_table, terminal_table, write_report
from avd.types import UserError
from helpers.command import avd

MakeRow = Callable[..., Row]
PROTOCOL = {
    "suite": "vbench",
    "info": "1" * 64,
    "prompts": "original",
    "samples": {"scene": 5, "temporal_flickering": 5},
    "fps": 16.0,
    "frames": 81,
    "size": "480x832",
    "sampler": {"steps": 50, "guidance": 5.0},
    "negative_prompt": "blurred",
    "package": "vbench 0.1.5, code abc",
}
COMPLETE = VBench.scoring.scores({each.key: 0.5 for each in VBench.scoring.dimensions})


@pytest.fixture
def row(make_row: MakeRow) -> MakeRow:
    """A row of VBench of a name; what is changed in its protocol, and its values."""

    def make(name: str, values: dict[str, Any] = COMPLETE, seed: int = 0, **changes: Any) -> Row:
        return make_row(name=name, seed=seed, scores={"vbench": values}, protocol={**PROTOCOL, **changes})

    return make


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompts": "f" * 64}, r'prompts is original for "teacher" and ffffffffffff… for "student"'),
        ({"info": "2" * 64}, 'info is 111111111111… for "teacher" and 222222222222… for'),
        ({"samples": {"scene": 5, "temporal_flickering": 25}}, "samples of temporal_flickering is 5 for .* and 25 for"),
        ({"fps": 8.0}, "fps is 16.0"),
        ({"frames": 49}, "frames is 81"),
        ({"size": "720x1280"}, "size is 480x832"),
        ({"package": "vbench 0.1.4, code def"}, "package is vbench 0.1.5, code abc"),
        ({"prompts": None}, "and not recorded for"),
    ],
)
def test_rows_of_different_protocols_are_refused_with_what_differs(
    row: MakeRow, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    rows = [row("teacher"), row("student", **changes)]
    for show in (markdown_table, terminal_table, lambda rows: write_report(tmp_path / "x", Results(rows=rows), [])):
        with pytest.raises(UserError, match=message) as caught:
            show(rows)
        assert "\n" not in str(caught.value)


def test_a_teacher_and_its_student_differ_in_sampler_and_negative_prompt(row: MakeRow) -> None:
    rows = [row("teacher"), row("student", sampler={"timesteps": [999, 522]}, negative_prompt=None)]
    assert "| student |" in markdown_table(rows)


def test_rows_of_other_suites_have_no_protocol_to_differ_in(row: MakeRow, make_row: MakeRow) -> None:
    assert "| AVD, 4 steps |" in markdown_table([row("teacher"), make_row(), make_row(name="DMD")])


def test_mixed_rows_have_a_column_of_what_differs(row: MakeRow, make_row: MakeRow) -> None:
    rows = [row("teacher"), row("rewritten", prompts="f" * 64, frames=49), make_row()]
    head, _, teacher, rewritten, world, *_ = markdown_table(rows, mixed_protocols=True).splitlines()
    assert world.endswith("| 16 | 1 | – |")
    assert head.endswith("| Videos | Seeds | Protocol |")
    assert teacher.endswith("| prompts original, frames 81 |")
    assert rewritten.endswith("| prompts ffffffffffff…, frames 49 |")


def test_one_name_is_one_protocol_even_where_rows_are_mixed(row: MakeRow) -> None:
    with pytest.raises(UserError, match="frames is 81"):
        markdown_table([row("student"), row("student", seed=1, frames=49)], mixed_protocols=True)


def test_the_command_takes_mixed_rows_if_asked(row: MakeRow, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for name, frames in (("a", 81), ("b", 49)):
        write_results(tmp_path / f"{name}.json", Results(rows=[row(name, frames=frames)]))
    files = (tmp_path / "a.json", tmp_path / "b.json")
    assert avd("table", *files) == 2
    assert "avd table --mixed-protocols" in capfd.readouterr().err
    assert avd("table", *files, "--mixed-protocols") == 0
    assert "| frames 49 |" in capfd.readouterr().out


def test_a_row_without_all_dimensions_is_called_partial(row: MakeRow) -> None:
    values = VBench.scoring.scores({"scene": 0.5})
    table = markdown_table([row("teacher"), row("student", values), row("student", values, seed=1)])
    assert table.count("student: partial, 15 of 16 dimensions of vbench are missing; there is no total.") == 1
    assert "teacher: partial" not in table


def test_protocols_survive_the_file_and_rows_without_them_are_read(row: MakeRow, tmp_path: Path) -> None:
    write_results(tmp_path / "rows.json", Results(rows=[row("teacher")]))
    assert read_results(tmp_path / "rows.json").rows[0].protocol == PROTOCOL
    data = json.loads((tmp_path / "rows.json").read_text())
    del data["rows"][0]["protocol"]
    (tmp_path / "rows.json").write_text(json.dumps(data))
    assert read_results(tmp_path / "rows.json").rows[0].protocol is None
