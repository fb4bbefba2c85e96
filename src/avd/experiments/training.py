"""Runs of experiments: what a budget gives, what speaks against a run, training it to its end, what it has cost."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from avd.config import Recipe, load_recipe
from avd.distillation.data import check_same_data, open_data
from avd.distillation.preflight import preflight
from avd.distillation.run import distill_run
from avd.engine.run_folder import METRICS_FILE, RECIPE_FILE, check_same_recipe
from avd.evaluation.rows import Training
from avd.experiments import Bars, Say
from avd.files import read_json_lines
from avd.methods.method import Method
from avd.models.devices import read_launch
from avd.types import UserError


def with_forwards(recipe: Recipe, forwards: float) -> Recipe:
    """The recipe with as many updates as its method makes of so many network forwards per clip, at least one."""
    updates = Method.of(recipe).updates_for(forwards, len(recipe.trained_stages))
    return recipe.model_copy(update={"training": recipe.training.model_copy(update={"updates": updates})})


def check_run(recipe: Recipe, run: Path) -> None:
    """Refuse a run before the first one begins. Raises UserError as `preflight`, or for one of another length that is
    finished."""
    if is_trained(run):
        check_same_recipe(run, recipe)
        check_same_data(run, recipe, open_data(recipe, Method.of(recipe)))
        done, updates = load_recipe(str(run / RECIPE_FILE)).training.updates, recipe.training.updates
        if done != updates:
            raise UserError(f"run {run} is finished, after {done} updates, not {updates}: name another output folder")
    else:
        preflight(recipe, run, resume=run.exists(), launch=read_launch(os.environ))


def check_sampled(recipe: Recipe) -> None:
    """Refuse to judge what makes no videos by itself. Raises UserError for an expert of high noise."""
    if recipe.end_timestep:
        raise UserError(
            f"recipe {recipe.name} trains an expert of high noise, whose videos are still noisy where it ends: judge "
            "the student of the low one's recipe, which begins with its run (experts.high)"
        )


def is_trained(run: Path) -> bool:
    """Whether a run has its student."""
    return (run / "student").exists()


def train(recipe: Recipe, run: Path, title: str, bars: Bars, say: Say) -> None:
    """Train a run to its end, from where it was stopped. Raises what `distill_run` does."""
    with bars() as bar:
        encoding, measuring, progress = bar("encoding clips"), bar("measuring references"), bar(title)
        distill_run(
            recipe,
            run,
            resume=run.exists(),
            encoding=encoding,
            measuring=measuring,
            progress=progress,
            tell=say,
        )


def training_of(recipe: Recipe, run: Path, earlier: Sequence[Training] = ()) -> Training:
    """What a finished run has cost, with the `earlier` ones that it began with."""
    seconds = [float(line["seconds"]) for line in read_json_lines(run / METRICS_FILE)]
    own = Method.of(recipe).forwards_of(len(seconds), len(recipe.trained_stages))
    return Training(
        updates=len(seconds),
        forwards=own + sum(each.forwards for each in earlier),
        seconds=sum(seconds) + sum(each.seconds for each in earlier),
        seconds_per_update=median(seconds),
    )
