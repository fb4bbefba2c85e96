"""`avd ablate`: the paper's ablation and its rivals, at one budget, judged with their errors."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from avd import ui

if TYPE_CHECKING:
    from avd.evaluation.rows import Results
    from avd.experiments.ablation.ablation import Ablation

_PAGE = "ablation.html"


def ablate(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder; run again, it adds only what is missing.")],
    recipe: Annotated[str, typer.Argument(help="Its rows: a recipe of kind ablation, by name or file.")] = "ablation",
    rows: Annotated[
        str | None,
        typer.Option("--rows", metavar="NAME,...", help="These rows or curves alone; default: all rows, no curve."),
    ] = None,
    seeds: Annotated[int | None, typer.Option("--seeds", help="Seeds 0, 1, ... of each row.", min=1, max=1000)] = None,
    forwards: Annotated[
        int | None,
        typer.Option("--forwards", help="Network forwards per clip of each student.", min=1, max=1_000_000_000),
    ] = None,
    clips: Annotated[
        int | None, typer.Option("--clips", help="Held-out captions that judge.", min=2, max=100_000)
    ] = None,
    tune: Annotated[bool, typer.Option("--tune", help="Tune each row's knob first.")] = False,
    report: Annotated[
        Path | None,
        typer.Option("--report", help="Put the tables of the rows that are there into this page, and do nothing else."),
    ] = None,
    changes: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a value of every row; repeatable.")
    ] = None,
) -> None:
    """Train every row with every seed at equal network forwards, judge all by the oracle and by the native suite, and
    hold the paper's order against what is found.

    Killed and started again it does what is missing; several processes may share a folder. results.json and
    ablation.html in it have all rows that are there.

    Example: avd ablate --rows teacher,dmd,avd --seeds 3 --output runs/ablation
    """
    from avd.config import AblationRecipe, load
    from avd.experiments.ablation.ablation import Ablation

    options = {"forwards": forwards, "seeds": seeds, "clips": clips}
    ablation = Ablation(load(AblationRecipe, recipe, options=options), output, tuple(changes or ()))
    if report is not None:
        _write_tables(ablation, report)
        return
    names = [] if rows is None else [name.strip() for name in rows.split(",")]
    _show(ablation, ablation.run(names, tune=tune, bars=ui.bars, say=ui.say))


def _write_tables(ablation: Ablation, page: Path) -> None:
    from avd.evaluation.staleness import stale_reasons
    from avd.report import ablation_tables, write_between
    from avd.types import UserError

    results = ablation.gather()
    if not results.rows:
        raise UserError(f"{ablation.output} holds no rows of this ablation: run it without --report first")
    write_between(page, ablation_tables(results, stale_reasons(results.rows)))


def _show(ablation: Ablation, results: Results) -> None:
    """Write the page with the videos of the first captions, and show the rows of the first seed."""
    from avd.data import video_bytes
    from avd.evaluation.staleness import stale_reasons
    from avd.report import sentence_lines, terminal_table, without_curves, write_report

    suite = results.meta["suite"]
    first = [row for row in without_curves(results) if row.seed == 0]
    videos, fps = ablation.shown(), ablation.fps
    prompts = [
        (caption, {name: video_bytes(clips[i], fps, scale=4) for name, clips in videos.items() if i < len(clips)})
        for i, caption in enumerate(ablation.captions())
    ]
    page = ablation.output / _PAGE
    write_report(page, results.model_copy(update={"rows": first}), prompts, title="Ablation, seed 0")
    ui.out.print(terminal_table([row.model_copy(update={"scores": {suite: row.scores[suite]}}) for row in first]))
    for line in sentence_lines([*results.meta["orderings"], *results.meta["comparisons"]], stale_reasons(results.rows)):
        ui.say(line)
    ui.say(f"all seeds are in {ablation.output / 'results.json'}, the videos of seed 0 in {page}")
