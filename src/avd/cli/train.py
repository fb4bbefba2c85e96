"""`avd train`: the parts a student stands on."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml

from avd import ui

if TYPE_CHECKING:
    from avd.engine.loop import Task
    from avd.engine.run_folder import RunFolder

app = typer.Typer(help="Train the parts of a model: VAE, teacher, interpolator.", no_args_is_help=True)

Output = Annotated[Path, typer.Option("--output", "-o", help="Folder of the run.")]
Updates = Annotated[int | None, typer.Option("--updates", help="How many updates; default: the task's own.", min=1)]
Seed = Annotated[int, typer.Option("--seed", help="Seed of weights, data order and noise.", min=0)]
Resume = Annotated[bool, typer.Option("--resume", help="Continue the run in the output folder.")]
Level = Annotated[int, typer.Option("--level", help="Level of the built-in world.", min=0)]


@app.command()
def vae(output: Output, updates: Updates = None, seed: Seed = 0, level: Level = 0, resume: Resume = False) -> None:
    """Train the miniature's video VAE on the built-in world.

    Example: avd train vae --output runs/vae
    """
    from avd.miniature.vae import VAEConfig, VAETask
    from avd.world import World

    config, world = _with_updates(VAEConfig(seed=seed), updates), World(level)
    folder = _open(output, {**asdict(config), "level": level}, resume)
    _train("VAE", VAETask(config, world), folder, config.updates)


@app.command()
def teacher(
    output: Output,
    vae: Annotated[Path, typer.Option("--vae", help="A folder written by `avd train vae`, or its vae/ folder.")],
    clips: Annotated[
        int | None, typer.Option("--clips", help="Clips to encode; default: the task's own.", min=1)
    ] = None,
    start: Annotated[
        str | None, typer.Option("--from", help="Model whose weights training starts from; default: random ones.")
    ] = None,
    updates: Updates = None,
    seed: Seed = 0,
    level: Level = 0,
    resume: Resume = False,
) -> None:
    """Train the miniature teacher on clips of the built-in world, encoded once and kept in the run's folder.

    Example: avd train teacher --vae runs/vae --output runs/teacher
    """
    from avd.miniature.latents import load_vae, world_latents_on_disk
    from avd.miniature.teacher import TeacherConfig, TeacherTask
    from avd.models.family import load_model
    from avd.world import World

    config = _with_updates(TeacherConfig(seed=seed), updates)
    config = config if clips is None else replace(config, clips=clips)
    network, world = load_vae(vae), World(level)
    began = None if start is None else load_model(start)
    folder = _open(output, {**asdict(config), "level": level, "vae": str(vae), "from": start}, resume)
    folder.lock()
    with ui.bars() as bar:
        latents = world_latents_on_disk(output / "latents", network, world, config.clips, bar("encoding clips"))
    _train("teacher", TeacherTask(config, world, network, latents, began), folder, config.updates)


@app.command()
def interpolator(
    output: Output,
    model: Annotated[str, typer.Option("--model", help="Model whose latents are interpolated.")] = "wan-mini",
    data: Annotated[
        Path | None, typer.Option("--data", help="A cache written by `avd prepare`; default: the built-in world.")
    ] = None,
    clips: Annotated[int, typer.Option("--clips", help="Clips of the built-in world to encode.", min=16)] = 4096,
    updates: Updates = None,
    seed: Seed = 0,
    level: Level = 0,
    resume: Resume = False,
) -> None:
    """Train the latent-frame interpolator: every second frame in, the full sequence out.

    Example: avd train interpolator --output runs/interpolator
    """
    from avd.engine.sources import Window, encode_world, open_cache, world_of
    from avd.miniature.interpolator import InterpolatorTask, InterpolatorTrainingConfig
    from avd.models.family import open_model

    config = _with_updates(InterpolatorTrainingConfig(seed=seed), updates)
    video_model = open_model(model)
    cache = None if data is None else open_cache(data, video_model)
    if cache is None:  # refused now, before there is a folder
        world_of(video_model, level)
    recorded = {**asdict(config), "level": level, "model": model, "data": data and str(data), "clips": clips}
    folder = _open(output, recorded, resume)
    with ui.bars() as bar:
        encoding = bar("encoding clips")
        source = cache or encode_world(video_model, world_of(video_model, level), clips, progress=encoding)
    kept = len(source) - max(len(source) // 20, 1)  # the last clips are held out
    heldout = source.latents(range(kept, len(source)))
    task = InterpolatorTask(config, Window(source, 0, kept), heldout, video_model.device)
    _train("interpolator", task, folder, config.updates)


@app.command()
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
    from avd.engine.run_folder import atomic_folder
    from avd.models.family import load_model
    from avd.models.interpolator import FrameInterpolator
    from avd.types import UserError

    if output.exists():
        raise UserError(f"output folder {output} exists already: name a new one")
    model = load_model(str(teacher))
    between = None if interpolator is None else FrameInterpolator.load(interpolator)
    with atomic_folder(output) as whole:
        model.half().save(whole)
        if between is not None:
            between.half().save(whole / "interpolator")
    ui.say(f"the model is in {output}")


def _open(output: Path, config: dict[str, Any], resume: bool) -> RunFolder:
    from avd.engine.checkpoint import check_newest
    from avd.engine.run_folder import RunFolder

    folder = RunFolder(output, resume=resume, recipe_text=yaml.safe_dump(config, sort_keys=False))
    check_newest(folder.checkpoints, config["updates"])
    return folder


def _train(title: str, task: Task, folder: RunFolder, updates: int) -> None:
    from avd.engine.loop import Schedule, run

    schedule = Schedule(updates, checkpoint_every=250, validate_every=250, sample_every=500)
    with ui.bars() as bar:
        run(task, folder, schedule, bar(title))
    ui.say(f"{title}: done, in {folder.path}")


def _with_updates(config: Any, updates: int | None) -> Any:
    return config if updates is None else replace(config, updates=updates)
