"""`avd generate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from avd import ui
from avd.models.settings import SolverName


def generate(
    model: Annotated[
        str, typer.Argument(help="A shipped model's name, a diffusers folder (a student's too), a hub id.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="MP4 file; several get -0, -1 ... before the suffix.")],
    prompt: Annotated[list[str] | None, typer.Option("--prompt", help="What to show; repeatable.")] = None,
    prompts: Annotated[Path | None, typer.Option("--prompts", help="A file with one prompt per line.")] = None,
    seed: Annotated[
        int, typer.Option("--seed", help="Seed of the first video; the others count up from it.", min=0, max=2**62)
    ] = 0,
    count: Annotated[int, typer.Option("--count", help="Videos per prompt.", min=1, max=100_000)] = 1,
    half_rate: Annotated[
        bool | None, typer.Option("--half-rate/--full-rate", help="High-noise steps at half frame rate.")
    ] = None,
    steps: Annotated[int | None, typer.Option("--steps", help="Steps of a many-step model.", min=1)] = None,
    guidance: Annotated[float | None, typer.Option("--guidance", help="Guidance scale of a many-step model.")] = None,
    solver: Annotated[
        SolverName | None, typer.Option("--solver", help="Solver of a many-step model; default: the model's own.")
    ] = None,
    transformer: Annotated[
        Path | None,
        typer.Option("--transformer", help="Safetensors file with the transformer, in place of the model's own."),
    ] = None,
) -> None:
    """Make videos with a student (4 steps) or a teacher (many steps).

    Example: avd generate runs/avd/student --prompt "a red ball drifting left" --seed 1 --output ball.mp4
    """
    from avd.data import read_prompts
    from avd.files import check_can_make
    from avd.types import UserError

    texts = list(prompt or ()) + (read_prompts(prompts) if prompts else [])
    if not texts:
        raise UserError("there is nothing to show: give --prompt TEXT or --prompts FILE")
    wanted = [(text, seed + i) for text in texts for i in range(count)]
    many = len(wanted) > 1
    files = [output.with_stem(f"{output.stem}-{i}") if many else output for i in range(len(wanted))]
    if output.suffix.lower() != ".mp4":
        raise UserError(f"output {output} is not an MP4 file: name one that ends in .mp4")
    taken = next((file for file in files if file.exists()), None)
    if taken is not None:
        raise UserError(f"output {taken} exists already: name another file")
    check_can_make(output)

    import torch

    from avd.data import write_video
    from avd.models.family import open_model
    from avd.sampling.choose import make_sampler

    video_model = open_model(model, transformer=None if transformer is None else str(transformer))
    sampler = make_sampler(video_model, half_rate=half_rate, steps=steps, guidance=guidance, solver=solver)
    output.parent.mkdir(parents=True, exist_ok=True)
    with ui.bars() as bar:
        progress = bar("generating")
        for i, ((text, own_seed), file) in enumerate(zip(wanted, files, strict=True)):
            latents = sampler([text], torch.Generator().manual_seed(own_seed))
            write_video(file, video_model.decode_video(latents)[0], video_model.settings.fps)
            progress(i + 1, len(files))
    for (text, own_seed), file in zip(wanted, files, strict=True):
        ui.say(f"{file}  {sampler.network_calls} network calls, seed {own_seed}: {text}")
