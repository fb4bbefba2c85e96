"""`avd compare`: several recipes, several seeds, one budget, one table."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from avd import ui

if TYPE_CHECKING:
    from avd.config import Recipe
    from avd.evaluation.rows import Row
    from avd.evaluation.suites.world import Suite
    from avd.sampling.samplers import Sampler

    _Named = tuple[str, Sampler, Path, dict[str, Any] | None]
    """A row's name, what makes its videos, where it is kept, and its recipe."""

_SHOWN = 4


def compare(
    recipes: Annotated[list[str], typer.Argument(help="Recipes, by name or file.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder; run again, what is there is not done again.")],
    seeds: Annotated[int, typer.Option("--seeds", help="Seeds 0, 1, ... of each recipe.", min=1)] = 3,
    updates: Annotated[int | None, typer.Option("--updates", help="Student updates of each run.", min=1)] = None,
    clips: Annotated[int, typer.Option("--clips", help="Held-out captions to sample.", min=1)] = 128,
    repeats: Annotated[int, typer.Option("--repeats", help="Seeds of each open caption, for diversity.", min=0)] = 8,
    half_rate: Annotated[bool, typer.Option("--half-rate", help="Sample each student at half rate too.")] = False,
    changes: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a value of every recipe; repeatable.")
    ] = None,
) -> None:
    """Distil every recipe with every seed at one budget, measure all students and the teacher, print one table.

    Example: avd compare dmd avd --seeds 3 --updates 150 --half-rate --output runs/compare
    """
    from avd.config import load_recipe
    from avd.distillation.run import distill_run
    from avd.evaluation.rows import Results, write_results
    from avd.evaluation.suites.world import Suite
    from avd.report import contact_sheet, terminal_table
    from avd.world import World

    budget = list(changes or ()) + ([] if updates is None else [f"training.updates={updates}"])
    resolved = [load_recipe(name, [*budget, f"seed={seed}"]) for seed in range(seeds) for name in recipes]
    suite = Suite(World(resolved[0].data.world_level), clips, repeats)
    truth, rendered = suite.row_of_truth()
    rows, shown = [truth], [(truth.name, list(rendered[:_SHOWN]))]
    for recipe in resolved:
        run = output / f"{recipe.name}-{recipe.seed}"
        if not (run / "student").exists():
            with ui.bars() as bar:
                encoding, progress = bar("encoding clips"), bar(run.name)
                distill_run(recipe, run, resume=run.exists(), encoding=encoding, progress=progress, tell=ui.say)
    samplers = [(seed, *named) for seed in range(seeds) for named in _teachers(resolved[0], output, seed)]
    samplers += [(recipe.seed, *named) for recipe in resolved for named in _students(recipe, output, half_rate)]
    for seed, name, sampler, file, values in samplers:
        rows.append(_measured(suite, name, sampler, file, seed, values))
        if seed == 0:
            shown.append((name, list(suite.preview(sampler, _SHOWN, seed))))
    first_place = {row.name: i for i, row in reversed(list(enumerate(rows)))}
    rows.sort(key=lambda row: first_place[row.name])  # all seeds of a name together
    contact_sheet(output / "sheet.png", shown, captions=suite.captions()[:_SHOWN])
    write_results(output / "results.json", Results(rows=rows, meta={"suite": "world", "level": suite.world.level}))
    ui.out.print(terminal_table([row for row in rows if row.seed == 0]))
    ui.say(f"all seeds are in {output / 'results.json'}; `avd table` makes a Markdown table of them")


def _teachers(recipe: Recipe, output: Path, seed: int) -> list[_Named]:
    """The teacher with all its steps, and cut to the student's."""
    from avd.models.family import open_model
    from avd.sampling.samplers import FewSteps, ManySteps

    teacher = open_model(recipe.model, transformer=recipe.transformer)
    settings = teacher.settings
    many = ManySteps(teacher, settings.steps, settings.guidance)
    few = FewSteps(teacher, recipe.rollout.timesteps)
    return [
        (f"teacher, {settings.steps}x2", many, output / f"teacher-{seed}.json", None),
        (f"teacher, cut to {few.steps}", few, output / f"teacher-cut-{seed}.json", None),
    ]


def _students(recipe: Recipe, output: Path, half_rate: bool) -> list[_Named]:
    """A finished run's student at full rate, and at half rate if asked."""
    from avd.models.family import open_model
    from avd.sampling.choose import make_sampler

    run = output / f"{recipe.name}-{recipe.seed}"
    student = open_model(str(run / "student"))
    values = recipe.model_dump(mode="json")
    named: list[_Named] = [(recipe.name, make_sampler(student, half_rate=False), run / "row.json", values)]
    if half_rate:
        half = make_sampler(student, half_rate=True)
        named.append((f"{recipe.name}, half rate", half, run / "row-half.json", values))
    return named


def _measured(suite: Suite, name: str, sampler: Sampler, file: Path, seed: int, recipe: dict[str, Any] | None) -> Row:
    """The row in `file`, measured now if it is not there."""
    from avd.evaluation.rows import Results, read_results, write_results

    if not file.exists():
        with ui.bars() as bar:
            progress = bar(f"{name}, seed {seed}")
            row, _ = suite.row_of_sampler(
                name, sampler, seed=seed, reference_speed=suite.reference_speed(), recipe=recipe, progress=progress
            )
        write_results(file, Results(rows=[row]))
    return read_results(file).rows[0]
