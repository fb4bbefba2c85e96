"""`avd export`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from avd import ui
from avd.export import format_named, formats

if TYPE_CHECKING:
    from avd.export.format import Student

ExportDtype = Literal["float32", "bfloat16"]


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
    dtype: Annotated[
        ExportDtype,
        typer.Option(
            help="Precision of the weights. bfloat16 halves the files; what it costs of what was learnt is printed. A "
            "LoRA by itself is always float32."
        ),
    ] = "float32",
) -> None:
    """Write a student as the files that another tool reads, and check them with that tool's own code.

    The sampling settings (avd.json) and the interpolator are written beside the weights.

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
    if dtype != "float32" and chosen.name == "lora":
        raise UserError("a LoRA is written in float32, as it is small: leave --dtype out")
    if checkpoint is None:
        write(chosen, output, _rounded(open_student(what), what, dtype), verify=True)
    else:
        from avd.distillation.saved_student import open_saved_student

        with open_saved_student(Path(what), checkpoint) as student:
            write(chosen, output, _rounded(student, what, dtype), verify=True)
    ui.say(f"the student is in {output}, as {chosen.name}: {chosen.help}")


def _rounded(student: Student, what: str, dtype: ExportDtype) -> Student:
    """The student in `dtype`, having shown what that costs."""
    if dtype == "float32":
        return student
    import torch

    from avd.distillation.saved_student import origin_of
    from avd.export.rounding import rounded, rounding_loss

    origin = origin_of(Path(what))
    loss = None if origin is None else rounding_loss(student, origin, torch.bfloat16)
    if loss is None:
        ui.say("what bfloat16 costs of what was learnt is not known: name the run to have it measured")
    else:
        ui.say(f"rounding to bfloat16 moves the weights by {loss:.1%} of their way from the run's model")
    return rounded(student, torch.bfloat16)
