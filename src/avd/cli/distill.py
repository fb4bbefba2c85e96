"""`avd distill`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from avd import ui


def distill(
    recipe: Annotated[str, typer.Argument(help="A shipped recipe's name, or a YAML file.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder of the run; default: runs/<recipe name>.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option("--data", help="A cache written by `avd prepare`; default: the built-in world.")
    ] = None,
    updates: Annotated[int | None, typer.Option("--updates", help="Student updates.", min=1)] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Seed of data order and noise.", min=0)] = None,
    changes: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a value of the recipe; repeatable.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in the output folder.")] = False,
) -> None:
    """Distil a model into a few-step student; the result is OUTPUT/student, a diffusers folder.

    Examples: avd distill avd --output runs/avd --updates 150 · avd distill dmd --set training.checkpoint_every=1
    """
    from avd.config import Recipe, load

    cache = None if data is None else str(data.resolve())
    options = {"training.updates": updates, "seed": seed, "data.cache": cache}
    resolved = load(Recipe, recipe, changes or (), options)

    from avd.distillation.run import distill_run

    folder = output if output is not None else Path("runs") / resolved.name
    with ui.bars() as bar:
        student = distill_run(
            resolved,
            folder,
            resume=resume,
            encoding=bar("encoding clips"),
            measuring=bar("measuring references"),
            progress=bar(f"distilling ({resolved.name})"),
            tell=ui.say,
        )
    ui.say(f"the student is in {student}")
