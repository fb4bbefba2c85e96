"""`avd generate`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from avd import ui
from avd.cli.placement import (
    Attention,
    Compile,
    Decoder,
    Float8,
    Guidance,
    HalfRate,
    HalfResolution,
    Int8,
    NegativePrompt,
    Offload,
    Steps,
    Tiling,
    place,
    placement_of,
)
from avd.models.settings import SolverName
from avd.types import UserError

if TYPE_CHECKING:
    from avd.evaluation.benchmarks.making import BenchmarkFolder
    from avd.models.devices import Launch
    from avd.models.family import TextToVideo
    from avd.sampling.samplers import Sampler


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
            "-1 ... before the suffix. With --suite the folder of its videos.",
        ),
    ],
    prompt: Annotated[list[str] | None, typer.Option("--prompt", help="What to show; repeatable.")] = None,
    prompts: Annotated[Path | None, typer.Option("--prompts", help="A file with one prompt per line.")] = None,
    seed: Annotated[
        int, typer.Option("--seed", help="Seed of the first video; the others count up from it.", min=0, max=2**62)
    ] = 0,
    count: Annotated[int, typer.Option("--count", help="Videos per prompt.", min=1, max=100_000)] = 1,
    half_rate: HalfRate = None,
    half_resolution: HalfResolution = None,
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
    suite: Annotated[
        str | None,
        typer.Option(
            "--suite", help="Make the videos of a benchmark, vbench or vbench2, as its own code expects them."
        ),
    ] = None,
    suite_info: Annotated[
        Path | None,
        typer.Option(
            "--suite-info",
            help="The benchmark's prompts: VBench_full_info.json or VBench2_full_info.json, or a folder with it "
            "(site-packages, a checkout).",
        ),
    ] = None,
    rewritten: Annotated[
        Path | None,
        typer.Option("--rewritten", help="Texts to sample in place of the benchmark's prompts, one per line."),
    ] = None,
    originals: Annotated[
        Path | None,
        typer.Option("--originals", help="The prompts that the lines of --rewritten follow; default: the benchmark's."),
    ] = None,
    flickering_samples: Annotated[
        int | None,
        typer.Option(
            "--flickering-samples", help="Videos per prompt of VBench's temporal_flickering [5]; 25 to filter them."
        ),
    ] = None,
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
    processes share the videos. The videos of a benchmark are taken up where the same command was stopped.

    Example: avd generate runs/avd/student --prompt "a red ball drifting left" --seed 1 --output ball.mp4

    Example: avd generate runs/avd/student --suite vbench --suite-info site-packages --output runs/avd/vbench
    """
    from avd.models.devices import read_launch
    from avd.sampling.generation import Wanted, check_made_by, list_videos, select_missing
    from avd.sampling.generation import generate as generate_videos

    placement = placement_of(offload, tiling, attention, fp8, int8, compiled, decoder)
    launch, folder = read_launch(os.environ), None
    texts = _texts(prompt, prompts)
    of_benchmark = (suite_info, rewritten, originals, flickering_samples)
    if suite is not None:
        if texts or count != 1:
            raise UserError(f"{suite} has its own prompts and counts: leave --prompt, --prompts and --count out")
        folder = _benchmark_folder(suite, *of_benchmark, output, seed, launch)
        own = folder.wanted()
    elif any(option is not None for option in of_benchmark):
        raise UserError("options of a benchmark are given and none is named: add --suite vbench or --suite vbench2")
    elif not texts:
        raise UserError("there is nothing to show: give --prompt TEXT, --prompts FILE or --suite NAME")
    else:
        own = list_videos(texts, seed, count, output)[launch.rank :: launch.size]
    missing = select_missing(own, skip_existing=skip_existing or folder is not None)

    from avd.models.family import open_model
    from avd.sampling.choose import make_sampler

    opened = open_model(model, transformer=None if transformer is None else str(transformer))
    sampler = make_sampler(
        place(opened, placement),
        half_rate=half_rate,
        half_resolution=half_resolution,
        steps=steps,
        guidance=guidance,
        solver=solver,
        negative_prompt=negative_prompt,
    )
    name = _pinned_name(opened, model)
    fps = None if folder is None else _begin(folder, sampler, name)
    check_made_by(sampler, sorted(set(own) - set(missing), key=lambda video: video.path))
    if folder is not None:
        folder.link_existing()
    with ui.bars() as bar:
        progress = bar("generating")

        def made(done: int, video: Wanted) -> None:
            if folder is not None:
                folder.link(video.path)
            progress(done, len(missing))
            ui.say(f"{video.path}  {sampler.network_calls} network calls, seed {video.seed}: {video.prompt}")

        generate_videos(sampler, missing, name, made=made, fps=fps)
    if len(missing) < len(own):
        ui.say(f"{len(own) - len(missing)} of {len(own)} videos were there already")


def _pinned_name(opened: TextToVideo, model: str) -> str:
    """What a model goes by: one of the hub at the commit that was read, any other as it was named."""
    source = opened.source
    return model if source is None or source.adapter is not None else source.pinned


def _texts(prompt: list[str] | None, prompts: Path | None) -> list[str]:
    from avd.data import read_prompts

    return list(prompt or ()) + (read_prompts(prompts) if prompts else [])


def _benchmark_folder(
    suite: str,
    suite_info: Path | None,
    rewritten: Path | None,
    originals: Path | None,
    flickering_samples: int | None,
    output: Path,
    seed: int,
    launch: Launch,
) -> BenchmarkFolder:
    """The folder of a benchmark's videos, checked before any model is opened."""
    from avd.evaluation.benchmarks.layout import read_layout
    from avd.evaluation.benchmarks.making import BenchmarkFolder, check_disk
    from avd.evaluation.benchmarks.manifest import plan_videos
    from avd.evaluation.benchmarks.prompts import read_rewritten

    if originals is not None and rewritten is None:
        raise UserError("--originals is given without --rewritten: name both, or neither")
    layout = read_layout(suite, suite_info, flickering_samples=flickering_samples)
    texts = None if rewritten is None else read_rewritten(rewritten, layout.prompts, originals)
    folder = BenchmarkFolder(output, plan_videos(layout, seed, texts), rank=launch.rank, size=launch.size)
    ui.say(f"{layout.prompts.benchmark.title}: {layout.summary()}")
    note = check_disk(layout, output)
    if note is not None:
        ui.say(note)
    return folder


def _begin(folder: BenchmarkFolder, sampler: Sampler, name: str) -> float:
    """Frames per second of the benchmark's files; the model's own rate is named where it is another."""
    making = folder.begin(sampler, name)
    if making.model_fps != making.fps:
        ui.say(f"{name} makes {making.model_fps:g} frames per second; the files play them at {making.fps:g}")
    return making.fps
