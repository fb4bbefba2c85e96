"""Which of the prompts that a model is judged by was it trained on?

A student lies in the folder of its run, whose recipe names the caches and the list of prompts that it learnt from; a
run without any learnt from clips of the built-in world. What the run began with, if that is another run's student, was
trained on that run's prompts too. Of a published model, a model of `avd train`, and a student that was copied out of
its run's folder, nothing is known. Prompts are the same if `avd.data.overlap` says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from avd.config import Recipe, load_recipe
from avd.data.overlap import shared_prompts
from avd.distillation.data import open_data, recorded_content
from avd.distillation.saved_student import SETTINGS_OF_RUN
from avd.engine.run_folder import RECIPE_FILE
from avd.engine.sources import world_of
from avd.evaluation.provenance import recipe_of, run_of
from avd.evaluation.rows import Overlap
from avd.methods.method import Method
from avd.models.family import read_facts
from avd.models.settings import read_settings
from avd.types import UserError


def find_overlap(model: str, prompts: Iterable[str], texts: Mapping[str, str] | None = None) -> Overlap | None:
    """The overlap of `prompts` with those that the run of a model, and the runs before it, were trained on.

    `texts` are what the model was given in place of prompts: a prompt is shared if either is. None for a model of no
    run. Data that cannot be read, or that are no longer what the run was trained on, are not compared, nor is a model
    whose absolute path leads nowhere, and `Overlap.unread` says why.
    """
    waiting, seen = [model], set[Path]()
    trained: list[str] = []
    unread: list[str] = []
    while waiting:
        name = waiting.pop()
        if Path(name).is_absolute() and not Path(name).exists():
            unread.append(f"{name} is no longer there")
            continue
        run = run_of(name)
        if run is None or run.resolve() in seen or "kind" in (recipe_of(name) or {}):
            continue
        seen.add(run.resolve())
        try:
            recipe = load_recipe(str(run / RECIPE_FILE))
            waiting += [each for each in (recipe.student.start, recipe.model) if each is not None]
            trained += _training_prompts(run, recipe)
        except UserError as error:
            unread.append(str(error))
    if not seen and not unread:
        return None
    different, texts = list(dict.fromkeys(prompts)), texts or {}
    known = set(shared_prompts([*different, *texts.values()], trained))
    shared = [prompt for prompt in different if not known.isdisjoint({prompt, texts.get(prompt, prompt)})]
    example = shared[0] if shared else None
    return Overlap(prompts=len(different), shared=len(shared), example=example, unread=unread)


def describe_overlap(overlap: Overlap, suite: str) -> list[str]:
    """What a user should know of an overlap, one line each; none where all was compared and nothing is shared."""
    lines = []
    if overlap.shared:
        lines.append(
            f"the model was trained on {overlap.shared} of the {overlap.prompts} different prompts of suite {suite}, "
            f"such as: {overlap.example}"
        )
    lines += [
        f"whether the model was trained on prompts of suite {suite} is not fully known: {reason}"
        for reason in overlap.unread
    ]
    return lines


def _training_prompts(run: Path, recipe: Recipe) -> list[str]:
    """All prompts and captions that a run learnt from. Raises UserError if they are not known."""
    data = open_data(recipe, Method.of(recipe))
    if data is None:
        return _world_captions(run, recipe)
    recorded = recorded_content(run)
    if recorded is not None and recorded != data.content:
        raise UserError(f"the data that {run / RECIPE_FILE} names are no longer those that the run was trained on")
    listed = [] if data.prompts is None else data.prompts.prompts
    return [*listed, *(caption for cache in data.caches for caption in cache.captions)]


def _world_captions(run: Path, recipe: Recipe) -> list[str]:
    settings = read_settings(run, SETTINGS_OF_RUN) or read_facts(recipe.model).settings
    world = world_of(settings, recipe.data.world_level, recipe.model)
    return [world.describe(i)[1].text for i in range(recipe.data.world_clips)]
