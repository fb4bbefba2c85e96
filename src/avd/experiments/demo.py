"""The demonstration: the miniature teacher distilled into a 4-step student, and both measured."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from avd.config import load_recipe
from avd.distillation.run import distill_run
from avd.evaluation.judging import RENDERED, judge
from avd.evaluation.provenance import recipe_of
from avd.evaluation.rows import Results, write_results
from avd.evaluation.suite import Clip
from avd.evaluation.suites.world import WorldSuite
from avd.experiments import Bars, Say
from avd.experiments.measuring import check_one_process, measure
from avd.models.family import open_model
from avd.sampling.choose import load_interpolator
from avd.sampling.samplers import FewSteps, ManySteps, Sampler

_RECIPE = "avd-half-rate"
RUN = "distillation"
"""Folder of the run, in the demonstration's."""


@dataclass(frozen=True)
class DemoPlan:
    updates: int
    world_clips: int
    measured_clips: int
    shown_clips: int
    teacher_steps: int = 50


STANDARD, SMOKE = DemoPlan(80, 512, 64, 6), DemoPlan(2, 32, 8, 2)
"""The full demonstration, and one that only shows that everything works."""


@dataclass(frozen=True)
class Demonstration:
    """`videos` holds the clips to show, uint8 (F, H, W, 3), by row name, in the order of `captions`."""

    results: Results
    captions: list[str]
    videos: dict[str, list[np.ndarray]]
    fps: int


def run_demo(output: Path, plan: DemoPlan, seed: int, *, bars: Bars, say: Say) -> Demonstration:
    """Distil, sample and measure in the folder `output`, from where it was stopped; writes `results.json` there."""
    check_one_process()
    changes = [
        f"seed={seed}",
        f"training.updates={plan.updates}",
        f"training.sample_every={plan.updates}",
        f"data.world_clips={plan.world_clips}",
    ]
    recipe = load_recipe(_RECIPE, changes)
    run = output / RUN
    with bars() as bar:
        say(f"1/2  distilling {recipe.model} into {len(recipe.rollout.timesteps)} steps, {plan.updates} updates")
        student = distill_run(
            recipe,
            run,
            resume=run.exists(),
            encoding=bar("encoding clips"),
            measuring=bar("measuring references"),
            progress=bar("distilling"),
            tell=say,
        )
    say("2/2  sampling and measuring")
    return _measure(output, student, plan, seed, bars)


def _measure(output: Path, student_folder: Path, plan: DemoPlan, seed: int, bars: Bars) -> Demonstration:
    """Every row of the table, and `results.json`."""
    suite = WorldSuite(clips=plan.measured_clips, repeats=0)
    truth = judge(suite, suite.rendered(), name="rendered clips", origin=RENDERED)
    rows, videos = [truth], {truth.name: _first(suite.rendered(), plan.shown_clips)}
    recipe, sampled = recipe_of(str(student_folder)), []
    for i, (name, sampler) in enumerate(_samplers(student_folder, plan.teacher_steps).items()):
        distilled = recipe if name.startswith("AVD") else None
        folder = output / f"samples-{i}"
        row, samples = measure(suite, sampler, folder, name=name, seed=seed, recipe=distilled, title=name, bars=bars)
        rows.append(row)
        sampled.append(samples)
        videos[name] = _first(samples.clips(), plan.shown_clips)
    results = Results(rows=rows, meta={"suite": suite.name, "level": suite.level, "updates": plan.updates})
    write_results(output / "results.json", results)
    for samples in sampled:
        samples.remove()
    captions = [prompt.text for prompt in suite.prompts()[: plan.shown_clips]]
    return Demonstration(results, captions, videos, suite.fps)


def _samplers(student_folder: Path, teacher_steps: int) -> dict[str, Sampler]:
    """What makes the videos, by row name."""
    teacher, student = open_model("wan-mini"), open_model(str(student_folder))
    timesteps = student.settings.student_timesteps
    assert timesteps is not None
    return {
        f"teacher, {teacher_steps}x2": ManySteps(teacher, teacher_steps, teacher.settings.guidance),
        "teacher, cut to 4": FewSteps(teacher, timesteps),
        "AVD, 4 steps": FewSteps(student, timesteps),
        "AVD, 4, half rate": FewSteps(student, timesteps, 2, load_interpolator(student)),
    }


def _first(clips: Iterable[Clip], count: int) -> list[np.ndarray]:
    return [clip.read().frames for clip in islice(clips, count)]
