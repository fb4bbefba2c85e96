"""`avd generate`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from avd import ui
from avd.cli.placement import (
    Attention,
    Compile,
    Decoder,
    Float8,
    Guidance,
    HalfRate,
    Int8,
    NegativePrompt,
    Offload,
    Steps,
    Tiling,
    place,
    placement_of,
)
from avd.models.settings import SolverName


def generate(
    model: Annotated[
        str,
        typer.Argument(
            help="A shipped model's name, a diffusers folder (a student's too), a hub id, or one with @REVISION."
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            help="File that ends in .mp4, .webm or .gif, or without a suffix a folder of PNG pictures; several get -0, "
            "-1 ... before the suffix.",
        ),
    ],
    prompt: Annotated[list[str] | None, typer.Option("--prompt", help="What to show; repeatable.")] = None,
    prompts: Annotated[Path | None, typer.Option("--prompts", help="A file with one prompt per line.")] = None,
    seed: Annotated[
        int, typer.Option("--seed", help="Seed of the first video; the others count up from it.", min=0, max=2**62)
    ] = 0,
    count: Annotated[int, typer.Option("--count", help="Videos per prompt.", min=1, max=100_000)] = 1,
    half_rate: HalfRate = None,
    steps: Steps = None,
    guidance: Guidance = None,
    solver: Annotated[
        SolverName | None, typer.Option("--solver", help="Solver of a many-step model; default: the model's own.")
    ] = None,
    negative_prompt: NegativePrompt = None,
    transformer: Annotated[
        Path | None,
        typer.Option("--transformer", help="Safetensors file with the transformer, in place of the model's own."),
    ] = None,
    skip_existing: Annotated[
        bool, typer.Option("--skip-existing", help="Make only the videos whose file is not there yet.")
    ] = False,
    offload: Offload = None,
    tiling: Tiling = None,
    attention: Attention = None,
    fp8: Float8 = False,
    int8: Int8 = False,
    compiled: Compile = False,
    decoder: Decoder = None,
) -> None:
    """Make videos with a student (4 steps) or a teacher (many steps).

    Each is written as soon as it is made, and holds what made it: see `avd inspect VIDEO`. Started by torchrun, the
    processes share the videos.

    Example: avd generate runs/avd/student --prompt "a red ball drifting left" --seed 1 --output ball.mp4
    """
    from avd.data import read_prompts
    from avd.models.devices import read_launch
    from avd.sampling.generation import Wanted, check_made_by, list_videos, select_missing
    from avd.sampling.generation import generate as generate_videos
    from avd.types import UserError

    texts = list(prompt or ()) + (read_prompts(prompts) if prompts else [])
    if not texts:
        raise UserError("there is nothing to show: give --prompt TEXT or --prompts FILE")
    placement = placement_of(offload, tiling, attention, fp8, int8, compiled, decoder)
    launch = read_launch(os.environ)
    own = list_videos(texts, seed, count, output)[launch.rank :: launch.size]
    missing = select_missing(own, skip_existing=skip_existing)

    from avd.models.family import open_model
    from avd.sampling.choose import make_sampler

    opened = open_model(model, transformer=None if transformer is None else str(transformer))
    placed = place(opened, placement)
    sampler = make_sampler(
        placed,
        half_rate=half_rate,
        steps=steps,
        guidance=guidance,
        solver=solver,
        negative_prompt=negative_prompt,
    )
    to_make = set(missing)
    check_made_by(sampler, [video for video in own if video not in to_make])
    source = opened.source
    name = model if source is None or source.adapter is not None else source.pinned
    with ui.bars() as bar:
        progress = bar("generating")

        def made(done: int, video: Wanted) -> None:
            progress(done, len(missing))
            ui.say(f"{video.path}  {sampler.network_calls} network calls, seed {video.seed}: {video.prompt}")

        generate_videos(sampler, missing, name, made=made)
    if len(missing) < len(own):
        ui.say(f"{len(own) - len(missing)} of {len(own)} videos were there already")
