"""`avd demo`: the main job, end to end, on the built-in miniature."""

from __future__ import annotations

import time
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from avd import ui

if TYPE_CHECKING:
    import numpy as np

    from avd.evaluation.rows import Results
    from avd.evaluation.suites.world import Suite


class Budget(StrEnum):
    standard = "standard"
    smoke = "smoke"


@dataclass(frozen=True)
class _Plan:
    updates: int
    world_clips: int
    measured_clips: int
    shown_clips: int
    teacher_steps: int


_PLANS = {Budget.standard: _Plan(80, 512, 64, 6, 50), Budget.smoke: _Plan(2, 32, 8, 2, 50)}
_RECIPE, _RUN = "avd-half-rate", "distillation"


def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the demonstration.")] = Path("runs/demo"),
    budget: Annotated[Budget, typer.Option("--budget", help="smoke: only show that it works.")] = Budget.standard,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the whole demonstration.", min=0)] = 0,
) -> None:
    """Distil the miniature teacher into a 4-step student, measure both, and write a page with the videos.

    Example: avd demo --output runs/demo
    """
    from avd.evaluation.rows import read_results
    from avd.report import terminal_table
    from avd.types import UserError

    results_file, page = output / "results.json", output / "report.html"
    if page.exists():
        ui.say(f"{output} holds a finished demonstration; remove it or name another --output to run it again")
        ui.out.print(terminal_table(read_results(results_file).rows))
    elif output.is_dir() and any(output.iterdir()) and not (output / _RUN).exists():
        raise UserError(f"output folder {output} holds files that are not a demonstration: name another folder")
    else:
        began = time.monotonic()
        results = _run(output, _PLANS[budget], seed)
        ui.out.print(terminal_table(results.rows))
        ui.say(f"done in {(time.monotonic() - began) / 60:.1f} minutes")
    ui.say(f"open {page} to see the videos side by side")


def _run(output: Path, plan: _Plan, seed: int) -> Results:
    """Distil (or go on distilling), sample, measure, report."""
    from avd.config import load_recipe
    from avd.distillation.run import distill_run

    changes = [
        f"seed={seed}",
        f"training.updates={plan.updates}",
        f"training.sample_every={plan.updates}",
        f"data.world_clips={plan.world_clips}",
    ]
    recipe = load_recipe(_RECIPE, changes)
    run = output / _RUN
    with ui.bars() as bar:
        ui.say(f"1/2  distilling {recipe.model} into {len(recipe.rollout.timesteps)} steps, {plan.updates} updates")
        encoding, training = bar("encoding clips"), bar("distilling")
        student = distill_run(recipe, run, resume=run.exists(), encoding=encoding, progress=training, tell=ui.say)
    ui.say("2/2  sampling and measuring")
    return _measure(output, student, plan, seed)


def _measure(output: Path, student: Path, plan: _Plan, seed: int) -> Results:
    """Every row of the table, `results.json` and `report.html`."""
    from avd.evaluation.provenance import recipe_of
    from avd.evaluation.rows import Results, write_results
    from avd.evaluation.suites.world import Suite
    from avd.models.family import open_model
    from avd.report import write_report
    from avd.sampling.choose import load_interpolator
    from avd.sampling.samplers import FewSteps, ManySteps, Sampler
    from avd.world import World

    suite = Suite(World(), plan.measured_clips, repeats=0)
    teacher, pupil = open_model("wan-mini"), open_model(str(student))
    timesteps = pupil.settings.student_timesteps
    assert timesteps is not None
    samplers: dict[str, Sampler] = {
        f"teacher, {plan.teacher_steps}x2": ManySteps(teacher, plan.teacher_steps, teacher.settings.guidance),
        "teacher, cut to 4": FewSteps(teacher, timesteps),
        "AVD, 4 steps": FewSteps(pupil, timesteps),
        "AVD, 4, half rate": FewSteps(pupil, timesteps, 2, load_interpolator(pupil)),
    }
    truth, rendered = suite.row_of_truth()
    rows, videos = [truth], {truth.name: rendered}
    reference, recipe = suite.reference_speed(), recipe_of(str(student))
    with ui.bars() as bar:
        for name, sampler in samplers.items():
            progress = bar(name)
            distilled = recipe if name.startswith("AVD") else None
            row, videos[name] = suite.row_of_sampler(
                name, sampler, seed=seed, reference_speed=reference, recipe=distilled, progress=progress
            )
            rows.append(row)
    results = Results(rows=rows, meta={"suite": "world", "level": suite.world.level, "updates": plan.updates})
    write_results(output / "results.json", results)
    write_report(output / "report.html", results, _show(suite, videos, plan.shown_clips))
    return results


def _show(suite: Suite, videos: dict[str, np.ndarray], count: int) -> list[tuple[str, dict[str, bytes]]]:
    """The first captions with every row's video as MP4 bytes, enlarged for the eye."""
    from avd.data import video_bytes

    return [
        (caption, {name: video_bytes(clips[i], suite.world.fps, scale=4) for name, clips in videos.items()})
        for i, caption in enumerate(suite.captions()[:count])
    ]
