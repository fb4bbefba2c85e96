"""`avd compare`: several recipes, several seeds, one budget, one table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from avd import ui


def compare(
    recipes: Annotated[list[str], typer.Argument(help="Recipes, by name or file.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder; run again, it adds only what is missing.")],
    seeds: Annotated[int, typer.Option("--seeds", help="Seeds 0, 1, ... of each recipe.", min=1, max=1000)] = 3,
    updates: Annotated[int | None, typer.Option("--updates", help="Student updates of each run.", min=1)] = None,
    forwards: Annotated[
        int | None,
        typer.Option(
            "--forwards",
            help="Network forwards per clip of each run, from which its updates follow.",
            min=1,
            max=1_000_000_000,
        ),
    ] = None,
    clips: Annotated[int, typer.Option("--clips", help="Held-out captions to sample.", min=1, max=100_000)] = 128,
    repeats: Annotated[
        int, typer.Option("--repeats", help="Seeds of each open caption, for diversity.", min=0, max=10_000)
    ] = 8,
    half_rate: Annotated[bool, typer.Option("--half-rate", help="Sample each student at half rate too.")] = False,
    changes: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a value of every recipe; repeatable.")
    ] = None,
) -> None:
    """Distil every recipe with every seed at one budget, measure all students and the teacher, print one table.

    Methods differ in what an update costs: --forwards gives all of them the same work, --updates the same updates.

    Example: avd compare dmd avd lcm --seeds 3 --forwards 2550 --output runs/compare
    """
    from avd.config import load_recipe
    from avd.types import UserError

    if updates is not None and forwards is not None:
        raise UserError("--updates and --forwards are two budgets: give one")
    budget = list(changes or ()) + ([] if updates is None else [f"training.updates={updates}"])
    resolved = [load_recipe(name, [*budget, f"seed={seed}"]) for seed in range(seeds) for name in recipes]

    from avd.experiments.compare import run_comparison
    from avd.experiments.training import with_forwards
    from avd.report import contact_sheet, terminal_table

    if forwards is not None:
        resolved = [with_forwards(recipe, forwards) for recipe in resolved]
    found = run_comparison(
        resolved, output, clips=clips, repeats=repeats, half_rate=half_rate, bars=ui.bars, say=ui.say
    )
    contact_sheet(output / "sheet.png", found.shown, captions=found.captions)
    ui.out.print(terminal_table([row for row in found.results.rows if row.seed == 0]))
    ui.say(f"all seeds are in {output / 'results.json'}; `avd table` makes a Markdown table of them")
