"""`avd evaluate` and `avd table`: rows of measures, and tables made of them."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from avd import ui


class SuiteName(StrEnum):
    world = "world"


def evaluate(
    what: Annotated[
        str, typer.Argument(metavar="DIR_OR_MODEL", help="A folder of MP4s with captions.jsonl, or a model.")
    ],
    json: Annotated[Path, typer.Option("--json", help="File for the row.")],
    suite: Annotated[SuiteName, typer.Option("--suite", help="What to measure with.")] = SuiteName.world,
    clips: Annotated[int, typer.Option("--clips", help="Held-out captions to sample.", min=1)] = 128,
    repeats: Annotated[int, typer.Option("--repeats", help="Seeds of each open caption, for diversity.", min=0)] = 8,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the sampling noise.", min=0)] = 0,
    name: Annotated[
        str | None, typer.Option("--name", help="Name of the row; default: the folder's or model's.")
    ] = None,
    half_rate: Annotated[
        bool | None, typer.Option("--half-rate/--full-rate", help="High-noise steps at half frame rate.")
    ] = None,
    steps: Annotated[int | None, typer.Option("--steps", help="Steps of a many-step model.", min=1)] = None,
    guidance: Annotated[float | None, typer.Option("--guidance", help="Guidance scale of a many-step model.")] = None,
    level: Annotated[int, typer.Option("--level", help="Level of the built-in world.", min=0)] = 0,
) -> None:
    """Measure a model, or videos made elsewhere, and write the row as JSON.

    Example: avd evaluate runs/avd/student --suite world --json runs/avd/row.json
    """
    from avd.evaluation.rows import Results, write_results
    from avd.evaluation.suites.world import Suite
    from avd.files import check_can_make
    from avd.report import terminal_table
    from avd.types import UserError
    from avd.world import World

    if json.exists():
        raise UserError(f"output {json} exists already: name another file")
    check_can_make(json)
    measure = Suite(World(level), clips, repeats)
    folder = Path(what)
    name = name or folder.resolve().name
    if (folder / "captions.jsonl").exists():
        from avd.evaluation.folder import read_folder

        videos, captions = read_folder(folder)
        row = measure.row_of_videos(name, videos, captions, measure.reference_speed())
    elif folder.is_dir() and not (folder / "model_index.json").exists():
        raise UserError(f"{what} is neither a folder of videos (no captions.jsonl) nor a model (no model_index.json)")
    else:
        from avd.evaluation.provenance import recipe_of
        from avd.models.family import open_model
        from avd.sampling.choose import make_sampler

        sampler = make_sampler(open_model(what), half_rate=half_rate, steps=steps, guidance=guidance)
        with ui.bars() as bar:
            progress = bar("sampling and judging")
            row, _ = measure.row_of_sampler(
                name,
                sampler,
                seed=seed,
                reference_speed=measure.reference_speed(),
                recipe=recipe_of(what),
                progress=progress,
            )
    write_results(json, Results(rows=[row]))
    ui.out.print(terminal_table([row]))


def table(
    files: Annotated[list[Path], typer.Argument(help="JSON files with rows, as `avd evaluate` and `avd demo` write.")],
) -> None:
    """Print rows as one Markdown table; rows of one name and several seeds become mean and spread.

    Example: avd table runs/*/row.json > docs/results-table.md
    """
    from avd.evaluation.rows import read_results
    from avd.report import markdown_table

    typer.echo(markdown_table([row for file in files for row in read_results(file).rows]))
