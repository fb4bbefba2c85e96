"""Judging by official code: the folder of a benchmark's videos, and that of the teacher."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from avd import ui
from avd.types import UserError

if TYPE_CHECKING:
    from avd.evaluation.benchmarks.scoring import OfficialSuite
    from avd.evaluation.suite import Suite


_OFFICIAL = {"vbench_python", "suite_info", "dimensions"}
_ANY = {"what", "json", "suite", "changes", "names", "reference"}


def refuse_options(context: typer.Context, suite: Suite) -> None:
    """Raise UserError for the first option of the command line that the suite would not heed."""
    from avd.evaluation.benchmarks.scoring import OfficialSuite

    is_official = isinstance(suite, OfficialSuite)
    for parameter in context.command.params:
        name, source = str(parameter.name), context.get_parameter_source(str(parameter.name))
        heeded = name in _ANY or (name in _OFFICIAL) == is_official
        if not heeded and source is not None and source.name == "COMMANDLINE":
            raise UserError(f"{parameter.opts[0]} means nothing to suite {suite.name}: leave it out")


def write_official(
    suite: OfficialSuite,
    folders: Mapping[str, Path],
    json: Path,
    *,
    python: Path | None,
    info: Path | None,
    dimensions: Sequence[str] | None,
) -> None:
    """Judge folders of a benchmark's videos, write their rows and show them.

    All are checked before the official code sees the first. Raises UserError for what cannot be judged, and for folders
    whose rows would not be of one protocol.
    """
    from avd.evaluation.benchmarks.official import open_folders
    from avd.evaluation.protocols import check_same_protocol
    from avd.evaluation.rows import Results, write_results
    from avd.models.devices import read_launch
    from avd.report import terminal_table

    if read_launch(os.environ).size > 1:
        raise UserError(f"suite {suite.name} starts a process per GPU by itself: run it without torchrun")
    names = [name for text in dimensions or () for name in text.replace(",", " ").split()]
    opened = open_folders(suite, folders, python=python, info=info, dimensions=names)
    if len(opened) == 1:
        ui.say("one row alone: name the teacher's videos with --reference to judge them by the same protocol")
    for folder in opened.values():
        for line in folder.report_overlap():
            ui.say(line)
    with ui.bars() as bar:
        protocols = {name: folder.check(bar(f"checking {name}")) for name, folder in opened.items()}
        check_same_protocol([*protocols.items()])
        rows = [folder.judge(name, protocols[name], bar(f"judging {name}"), ui.say) for name, folder in opened.items()]
    write_results(json, Results(rows=rows))
    ui.out.print(terminal_table(rows))
