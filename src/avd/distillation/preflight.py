"""Every refusal of a run, before anything is loaded or written: from recipe, folders and ranks to a resolved run.

`avd distill`, `avd compare` and `avd demo` begin with `preflight`, `avd plan` with `resolve_workload`, which is the
part of it that needs no machine and no model folder, and `avd train` with `open_run`. What comes after them refuses
nothing else; where a function checks its own arguments too, it is the one that is called here. What is cheap to check
comes first:

1. the recipe by itself: the terms of its method, and how many ranks its batch, `compute.shard` and `compute.context` go
   with;
2. this machine: the device, and packages for optimizers and trackers;
3. the run folder: free, or the same run, and its newest checkpoint;
4. the data: the headers of caches and of a folder of prompts, and whether a run that is resumed began with them;
5. the model by its config files: that it is no student, that it fits the data, its frames and tokens, that monitors can
   measure its clips, the attention backend, the layers and the rank of adapters, the built-in world's level and shape;
6. the model's folder, which a hub id may have to be fetched for: the headers of all weights, whether the cache was made
   with them, and the interpolator;
7. what else the networks begin as: the teacher, the starts of student and fake score, the expert of high noise, and
   whether a run that is resumed began with that.

Of weights only headers are read, and the first few values of each weight that a cache's identity is made of. Networks
are built without memory, to be compared with the headers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from avd.config import Recipe
from avd.distillation.data import (
    PreparedData,
    check_identities,
    check_same_data,
    check_shapes,
    check_unconditional,
    open_data,
)
from avd.distillation.model_record import check_high_expert, recorded_model
from avd.distillation.starts import Starts, read_other_sizes, resolve_starts
from avd.engine.checkpoint import check_newest
from avd.engine.optimizers import check_optimizer
from avd.engine.ranks import clips_per_rank
from avd.engine.run_folder import RunFolder, check_same_recipe
from avd.engine.sources import world_of
from avd.engine.trackers import check_trackers
from avd.flow import few_step_sigmas
from avd.measures.clip import clip_refusal
from avd.methods.method import Method
from avd.models.adapters import check_targets
from avd.models.devices import Launch, pick_device
from avd.models.family import ModelFacts, TextToVideo, find_facts, load_model, read_facts
from avd.models.interpolator import FrameInterpolator
from avd.models.settings import Settings
from avd.models.sizes import Sizes
from avd.sampling.choose import find_interpolator
from avd.sampling.rollout import FULL, make_stages
from avd.section import Section
from avd.types import UserError
from avd.world import World


@dataclass(frozen=True)
class Workload:
    """What each of `ranks` ranks computes for a recipe. `sizes` and `settings` are at the size of the run's clips."""

    recipe: Recipe
    method: Method
    sizes: Sizes
    settings: Settings
    others: Mapping[str, Sizes]
    """Sizes of the networks that differ from the student's, by the name of their role."""
    ranks: int
    clips_per_rank: int
    cached_clips: int | None
    """Clips of the recipe's caches: 0 where it learns from prompts alone, None where it names no data."""

    @property
    def microbatch(self) -> int:
        """The most clips that go through a network at once on a rank. The last ones of a batch may be fewer."""
        return min(self.recipe.compute.microbatch or self.clips_per_rank, self.clips_per_rank)


@dataclass(frozen=True)
class ResolvedRun:
    """A run that nothing speaks against. `model` is open, and none of its weights are read.

    It reads `data`, or clips of `world`, which are still to be encoded; the other one is None.
    """

    model: TextToVideo
    data: PreparedData | None
    world: World | None
    interpolator: Path | None
    """The folder of the interpolator that the recipe names, or else of the model's, if it has one."""
    folder: RunFolder
    starts: Starts
    """What the networks begin as."""


def preflight(recipe: Recipe, output: Path, *, resume: bool, launch: Launch) -> ResolvedRun:
    """The run that a recipe describes, in the folder `output`, as one of the processes of a launch.

    Raises UserError for whatever a run would refuse, in the order above.
    """
    method = _resolve_method(recipe)
    clips_per_rank(recipe.compute, recipe.training.batch, launch.size)  # raises where the ranks do not go with it
    device = pick_device(recipe.compute.device, launch)
    for optimizer in (recipe.student.optimizer, *(each.optimizer for each in method.updates.values())):
        check_optimizer(optimizer)
    check_trackers(recipe.trackers)
    folder = open_run(output, recipe, recipe.training.updates, resume=resume, owner=launch.rank == 0)
    data = open_data(recipe, method)
    if launch.rank == 0:
        check_same_data(output, recipe, data)
    facts = find_facts(recipe.model)
    if facts is not None:  # before anything is fetched
        _check_facts(recipe, facts, data, device)
    model = _open_model(recipe, recorded_model(output, recipe.model), device)
    if facts is None:
        facts = ModelFacts(model.sizes, model.settings)
        _check_facts(recipe, facts, data, device)
    world = None
    model.settings = replace(model.settings, negative_prompt=_negative_prompt(recipe, model.settings))
    if data is None:
        world = world_of(model.settings, recipe.data.world_level, recipe.model)
    else:
        check_identities(data, model)
        if data.geometry is not None:
            model.settings = replace(model.settings, **asdict(data.geometry))  # as are the clips of the student
    interpolator = named_interpolator(recipe)
    if interpolator is None:
        interpolator = find_interpolator(model)
        _check_interpolator(recipe, interpolator, model.latent_shape()[0])
    starts = resolve_starts(recipe, method, model)
    if launch.rank == 0:
        check_high_expert(output, recipe.experts.high, starts.high_weights)
    return ResolvedRun(model, data, world, interpolator, folder, starts)


def resolve_workload(recipe: Recipe, ranks: int) -> Workload:
    """What `ranks` ranks compute for a recipe, wherever they are: no model folder and no device is needed.

    Raises UserError for whatever a run would refuse, as far as recipe, configs and cache tell.
    """
    method, clips = _resolve_method(recipe), clips_per_rank(recipe.compute, recipe.training.batch, ranks)
    data, facts = open_data(recipe, method), read_facts(recipe.model)
    _check_model(recipe, facts, data)
    others = {name: _at_clips(sizes, data) for name, sizes in read_other_sizes(recipe, method).items()}
    settings, cached = facts.settings, None if data is None else sum(map(len, data.caches))
    if data is not None and data.geometry is not None:
        settings = replace(settings, **asdict(data.geometry))
    return Workload(recipe, method, _at_clips(facts.sizes, data), settings, others, ranks, clips, cached)


def open_run(output: Path, recipe: Section, updates: int, *, resume: bool, owner: bool = True) -> RunFolder:
    """The folder of a run of `updates` updates, not yet locked; nothing in it is changed.

    Raises UserError for a folder that holds anything else, a run that began with another recipe, and a newest
    checkpoint that is damaged or past `updates`.
    """
    folder = RunFolder(output, resume=resume, recipe_text=recipe.to_yaml(), owner=owner)
    if owner:
        check_same_recipe(output, recipe)
        check_newest(folder.checkpoints, updates)
    return folder


def _resolve_method(recipe: Recipe) -> Method:
    try:
        method = Method.of(recipe)
    except ValueError as error:
        raise UserError(f"recipe {recipe.name}: {error}: change its objective") from error
    continuing = [each.name for each in method.terms if each.term.continues(each.section)]
    if continuing and recipe.student.start is None:
        raise UserError(
            f"recipe {recipe.name}: objective.{continuing[0]}, as it is set, is for a student that has been distilled "
            f"before: name its run with student.start, or set objective.{continuing[0]}.from_scratch=true"
        )
    return method


def _open_model(recipe: Recipe, name: str, device: torch.device) -> TextToVideo:
    # A base that is never trained need not be read in more precision than it computes in.
    dtype = getattr(torch, recipe.compute.dtype) if recipe.roles == "adapters" else torch.float32
    return load_model(name, transformer=recipe.transformer, dtype=dtype, device=device)


def _at_clips(sizes: Sizes, data: PreparedData | None) -> Sizes:
    """At the size of a cache's clips, which a run takes."""
    shape = None if data is None else data.latent_CFHW
    return sizes if shape is None else replace(sizes, latent_CFHW=shape)


def _negative_prompt(recipe: Recipe, settings: Settings) -> str:
    return settings.negative_prompt if recipe.negative_prompt is None else recipe.negative_prompt


def _check_facts(recipe: Recipe, facts: ModelFacts, data: PreparedData | None, device: torch.device) -> None:
    """`_check_model`, and what a run asks besides."""
    if data is None:
        world_of(facts.settings, recipe.data.world_level, recipe.model)
    _check_model(recipe, facts, data, device)
    if data is not None:
        check_unconditional(data, recipe, _negative_prompt(recipe, facts.settings))


def _check_model(
    recipe: Recipe, facts: ModelFacts, data: PreparedData | None, device: torch.device | None = None
) -> None:
    """Raise UserError for a model that does not go with recipe and data, by its configs; `device`: and with that."""
    _refuse_student(recipe, facts.settings)
    if data is not None:
        check_shapes(data, recipe, facts.sizes)
    sizes, compute = _at_clips(facts.sizes, data), recipe.compute
    named = named_interpolator(recipe)
    if named is not None:
        _check_interpolator(recipe, named, sizes.latent_CFHW[0])
    if recipe.rollout.half_resolution_stages:
        clip = facts.settings if data is None or data.geometry is None else data.geometry
        sizes.check_half_resolution(clip.height)
    if recipe.rollout.half_rate_stages and sizes.frames() % 2 == 0:
        raise UserError(
            f"recipe {recipe.name} has half-rate stages and its clips have {sizes.frames()} latent frames, an even "
            "number: prepare clips of 8 n + 1 frames or set rollout.half_rate_stages=0"
        )
    check_frames(recipe, sizes.frames())
    _check_monitors(recipe, facts.settings, data)
    if recipe.experts.train is not None:
        sizes.check_experts()
    if compute.context > 1:
        _check_context(recipe, sizes)
    if compute.attention is not None:
        sizes.check_attention(compute.attention, compute.context, device)
    if recipe.roles == "adapters":
        _check_adapters(recipe, sizes)


def _refuse_student(recipe: Recipe, settings: Settings) -> None:
    if settings.student_timesteps is not None:
        raise UserError(
            f"model {recipe.model} is a student, which knows the velocity only at its own "
            f"{len(settings.student_timesteps)} timesteps: name the model that it was distilled from"
        )


def check_frames(recipe: Recipe, frames: int) -> None:
    """Whether clips of so many latent frames are long enough for every term."""
    for active in recipe.objective.active:
        least = active.term.least_frames(active.section)
        if frames < least:
            raise UserError(
                f"recipe {recipe.name} has clips of {frames} latent frames, and objective.{active.name}, as it is set, "
                f"needs {least}: prepare longer clips, or set its weight to 0"
            )


def _check_monitors(recipe: Recipe, settings: Settings, data: PreparedData | None) -> None:
    """Whether the monitors' suite can measure the run's clips."""
    if not recipe.monitors.every or recipe.monitors.suite != "native":
        return
    clip = settings if data is None or data.geometry is None else data.geometry
    refusal = clip_refusal(clip.frames, clip.height, clip.width, clip.fps)
    if refusal is not None:
        raise UserError(
            f"monitors.suite is native, which cannot measure the run's clips ({refusal}): set monitors.suite=pixels or "
            "prepare other clips"
        )


def _check_context(recipe: Recipe, sizes: Sizes) -> None:
    ranks = recipe.compute.context
    sizes.check_context(ranks)
    method = Method.of(recipe)
    for heads in method.heads:
        raise UserError(
            f"compute.context is {ranks}, and the objective's {heads.name} reads all tokens of a clip on one process: "
            "set it to 1"
        )
    for each in method.passes():
        if each.to_input:
            raise UserError(
                f"compute.context is {ranks}, and the objective needs the gradient of a network's input ({each.name}), "
                "of which a process finds only what its own tokens give: set it to 1"
            )
    rollout = recipe.rollout
    stages = make_stages(few_step_sigmas(rollout.timesteps), *rollout.strided_stages)
    lengths = sorted({sizes.tokens(*strides) for strides in (FULL, *(stage.strides for stage in stages))}, reverse=True)
    if any(length % ranks for length in lengths):
        raise UserError(
            f"clips are sequences of {' and '.join(map(str, lengths))} tokens, which compute.context={ranks} does not "
            "divide: choose another"
        )


def _check_adapters(recipe: Recipe, sizes: Sizes) -> None:
    rank, targets = recipe.adapters.rank, recipe.adapters.targets
    largest = sizes.largest_rank(targets)
    if largest is not None and rank > largest:
        raise UserError(
            f"adapters.rank is {rank}, and the narrowest layer that gets an adapter has {largest} features: choose at "
            f"most {largest}"
        )
    if targets is not None:
        with torch.device("meta"):
            check_targets(sizes.build().transformer, targets)


def named_interpolator(recipe: Recipe) -> Path | None:
    """The interpolator's folder that a recipe names, by itself or as that of the run which trained it."""
    if recipe.interpolator is None:
        return None
    folder = Path(recipe.interpolator)
    inner = folder / "interpolator"
    return inner if inner.is_dir() else folder


def _check_interpolator(recipe: Recipe, folder: Path | None, channels: int) -> None:
    config = None if folder is None else FrameInterpolator.read_config(folder)
    rate, resolution = recipe.rollout.strided_stages
    if not (rate or resolution) and recipe.interpolator is None:
        return
    if config is None:
        which, key = ("half-rate", "half_rate_stages") if rate else ("half-resolution", "half_resolution_stages")
        raise UserError(
            f"recipe {recipe.name} has {which} stages and {recipe.model} ships no interpolator: train one with "
            f"`avd train interpolator` and name its folder with interpolator=, or set rollout.{key}=0"
        )
    if config.channels != channels:
        raise UserError(
            f"the interpolator {folder} is for latents of {config.channels} channels, and those of {recipe.model} have "
            f"{channels}: train one with `avd train interpolator --model {recipe.model}`"
        )
    if resolution:
        config.check_space()
