"""`avd demo`: the main job, end to end, on the built-in miniature."""

from __future__ import annotations

import time
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from avd import ui

if TYPE_CHECKING:
    from avd.experiments.demo import Demonstration


class Budget(StrEnum):
    standard = "standard"
    smoke = "smoke"


def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the demonstration.")] = Path("runs/demo"),
    budget: Annotated[Budget, typer.Option("--budget", help="smoke: only show that it works.")] = Budget.standard,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the demonstration.", min=0)] = 0,
) -> None:
    """Distil the miniature teacher into a 4-step student, measure both, and write a page with the videos.

    Example: avd demo --output runs/demo
    """
    from avd.evaluation.rows import read_results
    from avd.experiments.demo import RUN, SMOKE, STANDARD, run_demo
    from avd.files import check_can_make
    from avd.report import terminal_table
    from avd.types import UserError

    page = output / "report.html"
    check_can_make(page)
    if page.exists():
        ui.say(f"{output} holds a finished demonstration; remove it or name another --output to run it again")
        ui.out.print(terminal_table(read_results(output / "results.json").rows))
    elif output.is_dir() and any(output.iterdir()) and not (output / RUN).exists():
        raise UserError(f"output folder {output} holds files that are not a demonstration: name another folder")
    else:
        began = time.monotonic()
        plan = SMOKE if budget is Budget.smoke else STANDARD
        found = run_demo(output, plan, seed, bars=ui.bars, say=ui.say)
        _write_page(page, found)
        ui.out.print(terminal_table(found.results.rows))
        ui.say(f"done in {(time.monotonic() - began) / 60:.1f} minutes")
    ui.say(f"open {page} to see the videos side by side")


def _write_page(page: Path, found: Demonstration) -> None:
    """The first captions with every row's video, enlarged for the eye, and the measures."""
    from avd.data import video_bytes
    from avd.report import write_report

    shown = [
        (caption, {name: video_bytes(clips[i], found.fps, scale=4) for name, clips in found.videos.items()})
        for i, caption in enumerate(found.captions)
    ]
    write_report(page, found.results, shown)
