"""A comparison: several recipes, several seeds, one budget, all students and the teacher measured.

Run again in the same folder, it does what is missing: finished runs and rows are kept, a run that was stopped resumes,
and clips that were sampled are not sampled again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from avd.config import Recipe
from avd.engine.randomness import generator_for
from avd.engine.sources import world_of
from avd.evaluation.judging import RENDERED, check_model, judge
from avd.evaluation.rows import Results, Row, read_results, write_results
from avd.evaluation.suites.world import WorldSuite
from avd.experiments import Bars, Say
from avd.experiments.measuring import check_one_process, measure
from avd.experiments.training import check_run, check_sampled, is_trained, train
from avd.models.family import TextToVideo, open_model
from avd.sampling.choose import make_sampler
from avd.sampling.samplers import FewSteps, ManySteps, Sampler
from avd.types import UserError

_SHOWN = 4


@dataclass(frozen=True)
class _Contender:
    """A row to be: its name, what makes its videos, where it is kept, and its recipe."""

    name: str
    seed: int
    sampler: Sampler
    file: Path
    recipe: dict[str, Any] | None = None


@dataclass(frozen=True)
class Comparison:
    """`shown` holds clips of the first captions, uint8 (F, H, W, 3), by row name, for seed 0."""

    results: Results
    captions: list[str]
    shown: list[tuple[str, list[np.ndarray]]]


def run_comparison(
    recipes: Sequence[Recipe], output: Path, *, clips: int, repeats: int, half_rate: bool, bars: Bars, say: Say
) -> Comparison:
    """Distil `recipes` (each with its seed) in folders of `output`, measure, and write `results.json` there.

    The teacher is that of the first recipe, with all its steps and cut to the student's, for every seed. With
    `half_rate` each student is measured at half rate too. Raises UserError as `distill_run` does, and for a model
    whose clips are not those of the built-in world.
    """
    check_one_process()
    first = recipes[0]
    for recipe in recipes:
        _check_run(recipe, _run_folder(output, recipe), recipes)
    teacher = open_model(first.model, transformer=first.transformer)
    suite = WorldSuite.of(world_of(teacher.settings, first.data.world_level, first.model), clips, repeats)
    check_model(suite, suite.prompts(), teacher.settings, first.model)
    truth = judge(suite, suite.rendered(), name="rendered clips", origin=RENDERED)
    shown = [(truth.name, [clip.read().frames for clip in islice(suite.rendered(), _SHOWN)])]
    for recipe in recipes:
        run = _run_folder(output, recipe)
        if not is_trained(run):
            train(recipe, run, run.name, bars, say)
    contenders = [each for seed in _seeds(recipes) for each in _teachers(teacher, first, output, seed)]
    contenders += [each for recipe in recipes for each in _students(recipe, output, half_rate)]
    rows = [truth]
    captions = [prompt.text for prompt in suite.prompts()[: min(_SHOWN, clips)]]
    for contender in contenders:
        rows.append(_measured(suite, contender, bars))
        if contender.seed == 0:
            shown.append((contender.name, list(_preview(contender.sampler, captions, contender.seed))))
    first_place = {row.name: i for i, row in reversed(list(enumerate(rows)))}
    rows.sort(key=lambda row: first_place[row.name])  # all seeds of a name together
    results = Results(rows=rows, meta={"suite": suite.name, "level": suite.level})
    write_results(output / "results.json", results)
    return Comparison(results, captions, shown)


def _check_run(recipe: Recipe, run: Path, recipes: Sequence[Recipe]) -> None:
    """Refuse a run before the first one begins. Raises UserError as `check_run` and `check_sampled`, or if another
    recipe has its name."""
    if any(other != recipe and (other.name, other.seed) == (recipe.name, recipe.seed) for other in recipes):
        raise UserError(f"two of the recipes are called {recipe.name} and differ: give each its own name")
    check_sampled(recipe)
    check_run(recipe, run)


def _seeds(recipes: Sequence[Recipe]) -> list[int]:
    return list(dict.fromkeys(recipe.seed for recipe in recipes))


def _run_folder(output: Path, recipe: Recipe) -> Path:
    return output / f"{recipe.name}-{recipe.seed}"


def _teachers(teacher: TextToVideo, recipe: Recipe, output: Path, seed: int) -> list[_Contender]:
    """The teacher with all its steps, and cut to the student's."""
    settings = teacher.settings
    many = ManySteps(teacher, settings.steps, settings.guidance)
    few = FewSteps(teacher, recipe.rollout.timesteps, transition=recipe.rollout.transition)
    return [
        _Contender(f"teacher, {settings.steps}x2", seed, many, output / f"teacher-{seed}.json"),
        _Contender(f"teacher, cut to {few.steps}", seed, few, output / f"teacher-cut-{seed}.json"),
    ]


def _students(recipe: Recipe, output: Path, half_rate: bool) -> list[_Contender]:
    """A finished run's student at full rate, and at half rate if asked and it has such stages."""
    run = _run_folder(output, recipe)
    student, seed = open_model(str(run / "student")), recipe.seed
    values = recipe.model_dump(mode="json")
    full = make_sampler(student, half_rate=False, half_resolution=False)
    found = [_Contender(recipe.name, seed, full, run / "row.json", values)]
    if half_rate and recipe.rollout.transition == "renoise":
        half = make_sampler(student, half_rate=True)
        found.append(_Contender(f"{recipe.name}, half rate", seed, half, run / "row-half.json", values))
    return found


def _measured(suite: WorldSuite, contender: _Contender, bars: Bars) -> Row:
    """The row in the contender's file, measured now if it is not there."""
    file, name, seed = contender.file, contender.name, contender.seed
    if not file.exists():
        check_model(suite, suite.prompts(), contender.sampler.model.settings, name)
        folder = file.with_name(f"{file.stem}-samples")
        title, recipe = f"{name}, seed {seed}", contender.recipe
        row, samples = measure(
            suite, contender.sampler, folder, name=name, seed=seed, recipe=recipe, title=title, bars=bars
        )
        write_results(file, Results(rows=[row]))
        samples.remove()
    row = read_results(file).rows[0]
    if row.videos != suite.clips:
        raise UserError(f"{file} is over {row.videos} clips, not {suite.clips}: remove it, or keep to its clips")
    return row


def _preview(sampler: Sampler, captions: list[str], seed: int) -> np.ndarray:
    """The sampler's videos of the first captions, for a person to look at."""
    return sampler.model.decode_video(sampler(captions, generator_for(seed, "preview")))
