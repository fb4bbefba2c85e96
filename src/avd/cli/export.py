"""`avd export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from avd import ui
from avd.export import format_named, formats


def export(
    what: Annotated[str, typer.Argument(metavar="RUN_OR_STUDENT", help="A run of `avd distill`, or its student.")],
    name: Annotated[
        str,
        typer.Option("--format", help=f"{'; '.join(f'{each.name}: {each.help}' for each in formats().values())}."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write; must not exist.")],
    checkpoint: Annotated[
        str | None,
        typer.Option(
            metavar="N|best|latest",
            help="Write the averaged student of a run's checkpoint instead of its result: after N updates, the best by "
            "monitors.keep_best, or the latest. The run need not have ended.",
        ),
    ] = None,
) -> None:
    """Write a student as the files that another tool reads, and check them with that tool's own code.

    Weights are written in float32. The sampling settings (avd.json) and the interpolator are written beside them.

    Examples: avd export runs/avd --format diffusers --output avd-student ·
    avd export runs/avd --checkpoint best --format diffusers --output best-student
    """
    from avd.export.folder import open_student
    from avd.export.writing import write
    from avd.files import check_can_make
    from avd.types import UserError

    chosen = format_named(name)
    if output.exists():
        raise UserError(f"output folder {output} exists already: name a new one")
    check_can_make(output)
    if checkpoint is None:
        write(chosen, output, open_student(what), verify=True)
    else:
        from avd.distillation.saved_student import open_saved_student

        with open_saved_student(Path(what), checkpoint) as student:
            write(chosen, output, student, verify=True)
    ui.say(f"the student is in {output}, as {chosen.name}: {chosen.help}")
