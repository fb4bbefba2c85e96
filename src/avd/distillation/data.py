"""What a run reads: real clips, the prompts of its rollouts, and what guidance leads away from.

All of it lies encoded in folders that `avd prepare` wrote, so training on them loads neither text encoder nor VAE. A
run without such folders encodes clips of the built-in world before it begins.

A resumed run must read what it began with. That is compared by content, which `data.json` in the run's folder records,
so folders may be moved.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from avd.config import Recipe
from avd.data import (
    EncodedTexts,
    Geometry,
    LatentCache,
    LatentMixture,
    LatentSource,
    ListedPrompts,
    Portion,
    PromptSource,
    places_of,
)
from avd.engine.run_folder import RECIPE_FILE
from avd.files import read_json, read_text, write_json
from avd.methods.method import Method
from avd.models.family import TextToVideo
from avd.models.sizes import Sizes
from avd.objectives.source import DataSource
from avd.types import Conditions, UserError

_FILE = "data.json"


@dataclass(frozen=True)
class RunData:
    """The data of a run, ready to be read."""

    clips: LatentSource | None
    """Real clips; None where the method asks for none."""
    prompts: PromptSource
    """The prompts of rollouts: the captions of the clips, or a list of their own."""
    unconditional: Conditions
    """One row: the negative prompt, or the null prompt. The teacher's guidance leads away from it."""
    latent_CFHW: tuple[int, int, int, int]
    parts: tuple[Portion, ...] = ()
    """The parts of the clips that are drawn by weight, if there are several."""

    @classmethod
    def encode(cls, model: TextToVideo, clips: LatentSource) -> RunData:
        """Clips whose captions are the prompts too; the rest is encoded by `model`."""
        channels, frames, height, width = clips.latents([0]).shape[1:]
        unconditional = model.encode_prompts([model.settings.negative_prompt])
        return cls(clips, clips, unconditional, (channels, frames, height, width))

    @property
    def prompt_parts(self) -> tuple[Portion, ...]:
        """Likewise, of the prompts."""
        return self.parts if self.prompts is self.clips else ()


@dataclass(frozen=True)
class PreparedData:
    """The prepared folders of a run, open. Of their tensors nothing is read but headers."""

    caches: tuple[LatentCache, ...]
    weights: tuple[float, ...]
    prompts: EncodedTexts | None

    @property
    def geometry(self) -> Geometry | None:
        """Size of the clips; None without caches, where it is the model's own."""
        return self.caches[0].geometry if self.caches else None

    @property
    def latent_CFHW(self) -> tuple[int, int, int, int] | None:
        if not self.caches:
            return None
        channels, frames, height, width = self.caches[0].latent_shape
        return channels, frames, height, width

    @property
    def parts(self) -> tuple[Portion, ...]:
        """How often each cache is read; empty for a single one."""
        if len(self.caches) < 2:
            return ()
        return tuple(Portion(len(cache), weight) for cache, weight in zip(self.caches, self.weights, strict=True))

    @property
    def content(self) -> dict[str, Any]:
        """What the folders hold, wherever they lie."""
        prompts = None if self.prompts is None else self.prompts.content
        return {"caches": [cache.content for cache in self.caches], "weights": list(self.weights), "prompts": prompts}

    def holder(self, text: str) -> EncodedTexts | None:
        """The folder that holds a text, if one does."""
        folders = (self.prompts, *(cache.texts for cache in self.caches))
        return next((texts for texts in folders if texts is not None and text in texts), None)

    def load(self, negative_prompt: str, latent_CFHW: tuple[int, int, int, int]) -> RunData:
        """What a run reads of it; `check_data` must have passed."""
        holder = self.holder(negative_prompt)
        assert holder is not None
        clips: LatentSource | None = None
        if self.caches:
            clips = self.caches[0] if len(self.caches) == 1 else LatentMixture(self.caches)
        prompts = clips if self.prompts is None else ListedPrompts(self.prompts)
        assert prompts is not None
        return RunData(clips, prompts, holder.conditions([negative_prompt]), latent_CFHW, self.parts)


def open_data(recipe: Recipe, method: Method) -> PreparedData | None:
    """The folders that a recipe names; None where it is to be trained on the built-in world.

    Raises UserError for a folder that cannot be read, an empty one, caches that do not go together, and a recipe that
    asks for real clips where only prompts are given.
    """
    caches = tuple(LatentCache(each.path) for each in recipe.data.weighted)
    for cache in caches:
        if not len(cache):
            raise UserError(f"cache {cache.path} holds no clips: prepare it again")
    _check_mixture(recipe, caches)
    prompts = None if recipe.data.prompts is None else _open_prompts(Path(recipe.data.prompts), recipe.model)
    if not caches and prompts is None:
        return None
    if not caches:
        _check_needs_no_clips(recipe, method)
    elif prompts is not None:
        _check_needs_no_list(recipe, method)
    return PreparedData(caches, tuple(each.weight for each in recipe.data.weighted), prompts)


def check_shapes(data: PreparedData, recipe: Recipe, sizes: Sizes) -> None:
    """Raise UserError for data of another model, as far as shapes tell; see `check_identities` for the rest."""
    needed = {name: tuple(shape) for name, shape in sizes.conditions.items()}
    for cache in data.caches:
        found = (cache.latent_shape[0], dict(cache.condition_shapes))
        if found != (sizes.latent_CFHW[0], needed):
            raise UserError(
                f"cache {cache.path} was prepared with another model (its latents have {found[0]} channels and its "
                f"prompts {found[1]}, those of {recipe.model} {sizes.latent_CFHW[0]} and {needed}): run `avd prepare` "
                "with the model you distil"
            )
    if data.prompts is not None and dict(data.prompts.condition_shapes) != needed:
        raise UserError(
            f"the prompts {data.prompts.folder} were encoded with another model (they have the shapes "
            f"{dict(data.prompts.condition_shapes)}, those of {recipe.model} {needed}): run `avd prepare --prompts` "
            "with the model you distil"
        )


def check_identities(data: PreparedData, model: TextToVideo) -> None:
    """Raise UserError if any of the data were made with the VAE or the text encoder of another model."""
    found = {f"cache {cache.path}": cache.identity for cache in data.caches}
    if data.prompts is not None:
        found[f"the folder of prompts {data.prompts.folder}"] = data.prompts.identity
    for name, identity in found.items():
        if identity != model.identity:
            raise UserError(
                f"{name} was prepared with another model ({identity}, this one is {model.identity}): "
                "run `avd prepare` with the model you distil"
            )


def check_unconditional(data: PreparedData, recipe: Recipe, negative_prompt: str) -> None:
    """Raise UserError if no folder holds the text that guidance leads away from, with the command that adds it."""
    if data.holder(negative_prompt) is not None:
        return
    folder = data.caches[0].path if data.prompts is None else data.prompts.folder
    what = f"negative prompt {negative_prompt[:30]!r}" if negative_prompt else "null prompt"
    command = f"avd prepare --model {shlex.quote(recipe.model)} --output {shlex.quote(str(folder))}"
    if recipe.negative_prompt:
        command += f" --negative-prompt {shlex.quote(recipe.negative_prompt)}"
    raise UserError(f"{folder} does not hold the encoded {what}, which guidance needs: add it with `{command}`")


def check_same_data(folder: Path, recipe: Recipe, data: PreparedData | None) -> None:
    """Raise UserError unless the run in `folder`, if it holds one, began with these data, wherever they lie now.

    A run of an earlier version recorded no content; its folders must be where they were.
    """
    if not (folder / RECIPE_FILE).exists():
        return
    recorded = recorded_content(folder)
    if recorded is not None:
        before, now = recorded, _record(data)
        where = "content of its folders"
    else:
        saved = yaml.safe_load(read_text(folder / RECIPE_FILE))
        before, now = _paths(saved.get("data") or {}), _paths(recipe.data.model_dump(mode="json"))
        where = "paths of its folders"
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key):
            raise UserError(
                f"run {folder} began with other data (data.{key}, by the {where}): resume with the same, or name "
                "another output folder"
            )


def recorded_content(folder: Path) -> dict[str, Any] | None:
    """`PreparedData.content` of what the run in `folder` began with; None of a run of an earlier version."""
    if not (folder / _FILE).exists():
        return None
    return read_json(folder / _FILE, "the record of a run's data", "name another output folder")


def record_data(folder: Path, data: PreparedData | None) -> None:
    """Write down in a run's folder what it is trained on."""
    write_json(folder / _FILE, _record(data))


def _record(data: PreparedData | None) -> dict[str, Any]:
    return PreparedData((), (), None).content if data is None else data.content


def _paths(data: Mapping[str, Any]) -> dict[str, Any]:
    return {key: data.get(key) or None for key in ("cache", "caches", "prompts")}


def _open_prompts(path: Path, model: str) -> EncodedTexts:
    if path.is_file():
        folder = path.with_suffix("") if path.suffix else path.with_name(f"{path.name}-encoded")
        raise UserError(
            f"data.prompts is {path}, a text that is not encoded: run `avd prepare --prompts {shlex.quote(str(path))} "
            f"--model {shlex.quote(model)} --output {shlex.quote(str(folder))}` and name that folder"
        )
    texts = EncodedTexts(path)
    if not texts.prompts:
        raise UserError(
            f"data.prompts is {path}, which has no list of prompts: run `avd prepare --prompts FILE --output {path}`"
        )
    return texts


def _check_mixture(recipe: Recipe, caches: tuple[LatentCache, ...]) -> None:
    """Caches that are mixed must be of one model and one clip, and none so rare that it would never be read."""
    for cache in caches[1:]:
        for what in ("identity", "geometry", "latent_shape", "condition_shapes"):
            first, found = getattr(caches[0], what), getattr(cache, what)
            if found != first:
                raise UserError(
                    f"the caches {caches[0].path} and {cache.path} cannot be mixed: their {what.replace('_', ' ')} is "
                    f"{first} and {found}: prepare them with one model and one clip size"
                )
    weighted = recipe.data.weighted
    places = places_of([Portion(1, each.weight) for each in weighted]) if weighted else []
    for each, count in zip(weighted, places, strict=True):
        if not count:
            raise UserError(
                f"data.caches: {each.path} has the weight {each.weight:g}, less than a thousandth of all: "
                "raise it, or leave it out"
            )


def _check_needs_no_clips(recipe: Recipe, method: Method) -> None:
    """Raise UserError for what cannot be had of prompts alone."""
    for active in method.terms:
        term, section = active.term, active.section
        if isinstance(active.source, DataSource) or term.paired(section) or term.measures_data(section):
            raise UserError(
                f"recipe {recipe.name} has prompts and no clips, which objective.{active.name} learns from: name a "
                "cache with --data, or set its weight to 0"
            )
    if recipe.monitors.every:
        raise UserError(
            f"recipe {recipe.name} has prompts and no clips, which its monitors compare with: name a cache with "
            "--data, or set monitors.every=0"
        )


def _check_needs_no_list(recipe: Recipe, method: Method) -> None:
    """Raise UserError for prompts of their own where rollouts are on the captions of real clips."""
    paired = [each.name for each in method.terms if each.term.paired(each.section)]
    if paired:
        raise UserError(
            f"recipe {recipe.name} has data.prompts, and objective.{paired[0]} compares the student's clips with real "
            "ones of the same captions, so no others would be read: leave data.prompts out, or set its weight to 0"
        )
