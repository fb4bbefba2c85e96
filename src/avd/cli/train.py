"""`avd train`: the parts a student stands on."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from avd import ui

if TYPE_CHECKING:
    from avd.engine.loop import Task
    from avd.engine.ranks import Ranks
    from avd.engine.run_folder import RunFolder

train_app = typer.Typer(help="Train the parts of a model: VAE, teacher, interpolator.", no_args_is_help=True)

RecipeName = Annotated[str, typer.Argument(help="A shipped recipe's name, or a YAML file.")]
Output = Annotated[Path, typer.Option("--output", "-o", help="Folder of the run.")]
Updates = Annotated[int | None, typer.Option("--updates", help="How many updates.", min=1)]
Seed = Annotated[int | None, typer.Option("--seed", help="Seed of weights, data order and noise.", min=0)]
_Level = Annotated[int | None, typer.Option("--level", help="Level of the built-in world.", min=0)]
Changes = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a value of the recipe; repeatable.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Continue the run in the output folder.")]


@train_app.command()
def vae(
    output: Output,
    recipe: RecipeName = "vae",
    updates: Updates = None,
    seed: Seed = None,
    level: _Level = None,
    changes: Changes = None,
    resume: Resume = False,
) -> None:
    """Train the miniature's video VAE on the built-in world.

    Example: avd train vae --set learning_rate=5e-4 --output runs/vae
    """
    from avd.config import VAERecipe, load

    options = {"updates": updates, "seed": seed, "level": level}
    resolved = load(VAERecipe, recipe, changes or (), options)

    from avd.distillation.preflight import open_run
    from avd.miniature.vae import VAETask
    from avd.world import World

    world = World(resolved.level)
    folder = open_run(output, resolved, resolved.updates, resume=resume)
    _train("VAE", VAETask(resolved, world), folder, resolved.updates)


@train_app.command()
def teacher(
    output: Output,
    recipe: RecipeName = "teacher",
    vae: Annotated[
        Path | None, typer.Option("--vae", help="A folder written by `avd train vae`, or its vae/ folder.")
    ] = None,
    clips: Annotated[int | None, typer.Option("--clips", help="Clips of the world to encode.", min=1)] = None,
    start: Annotated[
        str | None, typer.Option("--from", help="Model whose weights training starts from; default: random ones.")
    ] = None,
    updates: Updates = None,
    seed: Seed = None,
    level: _Level = None,
    changes: Changes = None,
    resume: Resume = False,
) -> None:
    """Train the miniature teacher on clips of the built-in world, encoded once and kept in the run's folder.

    Example: avd train teacher --vae runs/vae --output runs/teacher
    """
    from avd.config import TeacherRecipe, load
    from avd.types import UserError

    options = {"updates": updates, "seed": seed, "level": level, "clips": clips, "vae": _text(vae), "from": start}
    resolved = load(TeacherRecipe, recipe, changes or (), options)
    if resolved.vae is None:
        raise UserError("a teacher needs a VAE: give --vae FOLDER, as written by `avd train vae`")

    from avd.distillation.preflight import open_run
    from avd.miniature.latents import load_vae, world_latents_on_disk
    from avd.miniature.teacher import TeacherTask, open_start
    from avd.world import World

    world = World(resolved.level)
    folder = open_run(output, resolved, resolved.updates, resume=resume)
    network = load_vae(Path(resolved.vae))
    began = None if resolved.start is None else open_start(resolved.start)
    folder.lock()
    with ui.bars() as bar:
        latents = world_latents_on_disk(output / "latents", network, world, resolved.clips, bar("encoding clips"))
    _train("teacher", TeacherTask(resolved, world, network, latents, began), folder, resolved.updates)


@train_app.command()
def interpolator(
    output: Output,
    recipe: RecipeName = "interpolator",
    model: Annotated[str | None, typer.Option("--model", help="Model whose latents are interpolated.")] = None,
    data: Annotated[
        Path | None, typer.Option("--data", help="A cache written by `avd prepare`; default: the built-in world.")
    ] = None,
    clips: Annotated[int | None, typer.Option("--clips", help="Clips of the world to encode.", min=16)] = None,
    space: Annotated[
        bool | None,
        typer.Option("--space/--frames-only", help="Fill in rows and columns too, for steps at half resolution."),
    ] = None,
    student: Annotated[
        str | None,
        typer.Option("--student", help="A student's folder or run: learn from the clips that it predicts."),
    ] = None,
    updates: Updates = None,
    seed: Seed = None,
    level: _Level = None,
    changes: Changes = None,
    resume: Resume = False,
) -> None:
    """Train the interpolator of latents: every second frame in, the full sequence out. Runs under torchrun too.

    With a student it learns from what that predicts for the captions at its last half-rate stage, and not from clips.

    Example: avd train interpolator --output runs/interpolator
    """
    from avd.config import ComputeRecipe, InterpolatorRecipe, load

    options = {"updates": updates, "seed": seed, "level": level, "model": model, "data": _text(data), "clips": clips}
    options |= {"space": space, "student": student}
    resolved = load(InterpolatorRecipe, recipe, changes or (), options)

    from avd.data import LatentSource
    from avd.distillation.preflight import open_run
    from avd.engine.ranks import process_group
    from avd.engine.sources import SourceSlice, encode_world, open_cache, world_of
    from avd.miniature.interpolator import InterpolatorTask, check_batch, check_clips, count_heldout
    from avd.miniature.predicted import open_predictor, predict_clips
    from avd.models.devices import read_launch
    from avd.models.family import open_model

    launch = read_launch(os.environ, connects=True)
    check_batch(resolved.batch, launch.size)
    folder = open_run(output, resolved, resolved.updates, resume=resume, owner=launch.rank == 0)
    video_model = open_model(resolved.model) if resolved.student is None else open_predictor(resolved.student)
    if resolved.data is not None:
        source: LatentSource = open_cache(Path(resolved.data), video_model)
        check_clips(len(source), source.latents([]).shape[1:], space=resolved.space)
    else:
        world = world_of(video_model.settings, resolved.level, resolved.model)
        check_clips(resolved.clips, video_model.latent_shape(), space=resolved.space)
        with ui.bars() as bar:
            source = encode_world(video_model, world, resolved.clips, progress=bar("encoding clips"))
    if resolved.student is not None:
        check_clips(resolved.clips, video_model.latent_shape(), space=resolved.space)
        with ui.bars() as bar:
            count = min(len(source), resolved.clips)
            source = predict_clips(video_model, source, count, resolved.seed, bar("predicting clips"))
    training = len(source) - count_heldout(len(source), resolved.heldout)
    learnt, heldout = SourceSlice(source, 0, training), SourceSlice(source, training, len(source))
    with process_group(ComputeRecipe()) as ranks:
        _train("interpolator", InterpolatorTask(resolved, learnt, heldout, ranks), folder, resolved.updates, ranks)


@train_app.command()
def pack(
    teacher: Annotated[Path, typer.Argument(help="A model folder, such as runs/teacher/teacher.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write; must not exist.")],
    interpolator: Annotated[
        Path | None, typer.Option("--interpolator", help="A folder with an interpolator to add.")
    ] = None,
) -> None:
    """Pack a model and its interpolator into one folder in half precision, as `wan-mini` is shipped.

    Example: avd train pack runs/teacher/teacher --interpolator runs/interpolator/interpolator --output wan-mini
    """
    from avd.files import atomic_folder
    from avd.models.family import load_model
    from avd.models.interpolator import FrameInterpolator
    from avd.types import UserError

    if output.exists():
        raise UserError(f"output folder {output} exists already: name a new one")
    model = load_model(str(teacher))
    between = None if interpolator is None else FrameInterpolator.load(interpolator)
    with atomic_folder(output) as writing:
        model.half().save(writing)
        if between is not None:
            between.half().save(writing / "interpolator")
    ui.say(f"the model is in {output}")


def _train(title: str, task: Task, folder: RunFolder, updates: int, ranks: Ranks | None = None) -> None:
    from avd.engine.loop import Schedule, run
    from avd.engine.ranks import SINGLE_PROCESS

    schedule = Schedule(updates, checkpoint_every=250, validate_every=250, sample_every=500)
    with ui.bars() as bar:
        run(task, folder, schedule, bar(title), ranks=ranks or SINGLE_PROCESS)
    ui.say(f"{title}: done, in {folder.path}")


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)
