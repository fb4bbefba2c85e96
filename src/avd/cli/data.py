"""`avd prepare` and `avd world`: videos in."""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from avd import ui

if TYPE_CHECKING:
    from avd.data import Checks, Share, Summary
    from avd.models.devices import Launch

world_app = typer.Typer(help="The built-in world: procedural clips with known ground truth.", no_args_is_help=True)


class Precision(StrEnum):
    """How latents and prompts are stored."""

    float16 = "float16"
    bfloat16 = "bfloat16"


_OF_TEXTS = {"output", "videos", "prompts", "negative_prompt", "model", "dtype"}
"""Parameters of `avd prepare` that mean something without videos."""


def prepare(
    context: typer.Context,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the cache.")],
    videos: Annotated[
        Path | None,
        typer.Argument(
            help="Folder, searched recursively, of video files, folders of numbered pictures and .tar shards; or one "
            ".tar. Pictures are scaled to cover the size, the aspect ratio kept, and cropped about the centre. Without "
            "it, only texts are encoded: prompts, and what a finished cache lacks."
        ),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            "--prompts",
            help="Prompts of their own for the student's rollouts (data.prompts): a text file of lines, or JSONL.",
        ),
    ] = None,
    negative_prompt: Annotated[
        str | None,
        typer.Option("--negative-prompt", help="Encode this one for guidance too; default: the model's own."),
    ] = None,
    captions: Annotated[
        Path | None,
        typer.Option(
            "--captions",
            help="Table of files and captions: JSONL, CSV, TSV or Parquet; default: captions.jsonl in the folder, "
            "or else a .txt or .json beside each video.",
        ),
    ] = None,
    file_column: Annotated[
        str | None, typer.Option("--file-column", help="Column of the file names; default: found by its usual names.")
    ] = None,
    caption_column: Annotated[
        str | None, typer.Option("--caption-column", help="Column of the captions; default: found likewise.")
    ] = None,
    model: Annotated[str, typer.Option("--model", help="Model that will be distilled.")] = "wan-mini",
    frames: Annotated[
        int | None, typer.Option("--frames", help="Frames per clip, 4n + 1; default: the model's.")
    ] = None,
    fps: Annotated[float | None, typer.Option("--fps", help="Frame rate; default: the model's.")] = None,
    height: Annotated[int | None, typer.Option("--height", help="Default: the model's.")] = None,
    width: Annotated[int | None, typer.Option("--width", help="Default: the model's.")] = None,
    windows: Annotated[
        int,
        typer.Option(
            "--windows",
            min=1,
            max=1_000_000,
            help="Most clips per file, one after the other; each gets the file's caption.",
        ),
    ] = 1,
    skip_start: Annotated[
        float, typer.Option("--skip-start", help="Seconds at the start of each file that no clip is taken of.")
    ] = 0.0,
    spread: Annotated[
        bool, typer.Option("--spread", help="Spread the clips over the file instead, each amid an equal part of it.")
    ] = False,
    min_fps: Annotated[
        float | None,
        typer.Option("--min-fps", help="Least frame rate of a file; 0: any. Default: 0.9 of the clips'."),
    ] = None,
    min_size: Annotated[
        int | None,
        typer.Option(
            "--min-size",
            help="Least pixels of a file's shorter side; 0: any. Default: half of the clips' shorter side.",
        ),
    ] = None,
    min_kept: Annotated[
        float | None,
        typer.Option("--min-kept", help="Least share of the picture left by the crop; 0: any. Default: 0.5."),
    ] = None,
    min_motion: Annotated[
        float | None,
        typer.Option(
            "--min-motion",
            help="Least motion of a clip, in shorter sides per second; 0: stills too. Default: 0.001.",
        ),
    ] = None,
    max_black: Annotated[
        float | None,
        typer.Option("--max-black", help="Largest share of a clip's frames that may be black; 1: any. Default: 0.1."),
    ] = None,
    cuts: Annotated[
        bool, typer.Option("--cuts/--no-cuts", help="Take clips with hard cuts in them; by default they are left out.")
    ] = False,
    picture_fps: Annotated[
        float | None, typer.Option("--picture-fps", help="Rate of folders of pictures; default: the clips'.")
    ] = None,
    dtype: Annotated[Precision, typer.Option("--dtype", help="How numbers are stored.")] = Precision.float16,
    workers: Annotated[
        int, typer.Option("--workers", min=0, max=1024, help="Processes that decode videos; 0: this one decodes too.")
    ] = 1,
    batch: Annotated[
        int | None,
        typer.Option("--batch", min=1, max=1024, help="Clips encoded at once; default: 1 on a GPU, 4 on a CPU."),
    ] = None,
    shard: Annotated[
        str | None,
        typer.Option(
            "--shard",
            metavar="I/N",
            help="Encode the I-th of N equal shares, from 1, for job arrays; the last to end completes the cache.",
        ),
    ] = None,
    heldout: Annotated[
        list[Path] | None,
        typer.Option(
            "--heldout",
            help="Prompts the model will be judged by (a text file of lines, JSON or JSONL); warns of captions that "
            "are among them; repeatable.",
        ),
    ] = None,
) -> None:
    """Encode videos, captions and prompts once, for distillation. Run again after an interruption, it continues.

    With torchrun, the processes share the work, each on its own GPU: torchrun --nproc-per-node 8 -m avd prepare ...

    Examples: avd prepare clips/ --captions clips/captions.jsonl --output runs/cache · avd prepare --prompts list.txt
    --output runs/prompts
    """
    from avd.data import ReadOptions, Reports, prepare_texts, read_prompts, recommended
    from avd.data import prepare as prepare_cache
    from avd.models.devices import read_launch
    from avd.models.family import open_model

    if videos is None:
        _refuse_options_of_videos(context)
    launch = read_launch(os.environ)
    share, encoder = _share(shard, launch), open_model(model)
    own = encoder.settings
    texts = list(dict.fromkeys(["", own.negative_prompt, negative_prompt or ""]))
    listed = None if prompts is None else read_prompts(prompts)
    frames, height, width = (
        its_own if value is None else value
        for value, its_own in ((frames, own.frames), (height, own.height), (width, own.width))
    )
    encoder.check_clip(frames, height, width)
    if videos is None:
        if launch.rank == 0:
            with interruptible(), ui.bars() as bar:
                texts_bar = bar("encoding texts")
                count = prepare_texts(output, encoder, texts, prompts=prompts, dtype=dtype.value, progress=texts_bar)
            ui.say(f"encoded {count} texts into {output}")
        return
    rate = float(own.fps if fps is None else fps)
    limits = (min_fps, min_size, min_kept, min_motion, max_black)
    checks = _changed(recommended(rate, height, width), limits, cuts)
    reading = ReadOptions(frames, rate, (height, width), windows, picture_fps, skip_start, spread, checks)
    with interruptible(), ui.bars() as bar:
        summary = prepare_cache(
            videos,
            captions,
            encoder,
            output,
            reading,
            file_column=file_column,
            caption_column=caption_column,
            workers=workers,
            batch_size=batch or (1 if encoder.device.type == "cuda" else 4),
            dtype=dtype.value,
            texts=texts,
            prompts=listed,
            heldout=heldout or (),
            share=share,
            reports=Reports(
                say=ui.say,
                warn=lambda text: ui.say(f"warning: {text}"),
                videos=with_rate(bar("encoding videos")),
                texts=bar("encoding texts"),
                waiting=bar("waiting for parts of others"),
            ),
        )
    _tell(summary, output)


def _refuse_options_of_videos(context: typer.Context) -> None:
    """Without videos they would be ignored."""
    from avd.types import UserError

    for parameter in context.command.params:
        source = context.get_parameter_source(str(parameter.name))
        if source is not None and source.name == "COMMANDLINE" and parameter.name not in _OF_TEXTS:
            raise UserError(
                f"{parameter.opts[0]} is an option of videos, and none are named: name their folder, or leave it out"
            )


def _share(shard: str | None, launch: Launch) -> Share:
    """What this process does of a cache, as one of those of a launch that does the share "I/N"."""
    from avd.data import Share
    from avd.types import UserError

    found = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", shard or "1/1")
    number, count = map(int, found.groups()) if found else (0, 0)
    if not 1 <= number <= count:
        raise UserError(f"--shard is {shard!r}: it must be I/N, with I from 1 to N, such as 1/8")
    first = (number - 1) * launch.size
    everyone = range(first, first + launch.size)
    return Share(first + launch.rank, count * launch.size, everyone if launch.rank == 0 else range(0))


def _changed(checks: Checks, limits: tuple[float | None, ...], cuts: bool) -> Checks:
    """Checks with the limits that are given, in the order of the fields."""
    names = ("min_fps", "min_size", "min_kept", "min_motion", "max_black")
    given: dict[str, Any] = {name: limit for name, limit in zip(names, limits, strict=True) if limit is not None}
    return replace(checks, cuts=cuts, **given)


@contextmanager
def interruptible() -> Iterator[None]:
    """On Ctrl-C say that nothing is lost."""
    try:
        yield
    except KeyboardInterrupt:
        ui.say("interrupted: run the same command to continue from here")
        raise


def with_rate(bar: ui.Bar) -> Callable[[int, int], None]:
    """Progress that shows files a second, of those done since the first call."""
    began, before = math.nan, 0

    def progress(done: int, total: int) -> None:
        nonlocal began, before
        now = time.monotonic()
        if math.isnan(began):
            began, before = now, done
        bar(done, total, {"files/s": (done - before) / (now - began)} if done > before else None)

    return progress


def _tell(summary: Summary | None, output: Path) -> None:
    if summary is None:
        ui.say(
            f"this share of {output} is done: the last process to end completes it; if all have ended and it is "
            "unfinished, run the same command again"
        )
        return
    ui.say(
        f"kept {summary.kept} clips of {summary.files} files: {summary.seconds:,.0f} s of their "
        f"{summary.source_seconds:,.0f} s of video, {summary.size / 1e6:,.1f} MB in {output}"
    )
    for reason, count in summary.skipped.items():
        example = summary.examples[reason]
        ui.say(" ".join(f"skipped {count}: {reason}, such as {example.file}: {example.detail}".split()))
    if summary.skipped:
        ui.say(f"every skipped file is listed in {output / 'skipped.jsonl'}")


@world_app.command()
def render(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the files; must not hold any.")],
    count: Annotated[int, typer.Option("--count", "-n", help="How many clips.", min=1, max=10_000_000)] = 64,
    level: Annotated[int, typer.Option("--level", help="0 is the plainest.", min=0)] = 0,
    size: Annotated[int, typer.Option("--size", help="Pixels per side.", min=16, max=4096)] = 48,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the world.", min=0, max=2**63 - 1)] = 0,
    heldout: Annotated[bool, typer.Option("--heldout", help="Clips of the held-out split.")] = False,
) -> None:
    """Write clips of the built-in world as MP4 files with captions.jsonl, as your own data would be.

    Example: avd world render --count 64 --output clips
    """
    from avd.data import CaptionedFile, write_captions, write_video
    from avd.types import UserError
    from avd.world import World

    world = World(level, size=size, seed=seed)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"output folder {output} is in use: name an empty or a new one")
    output.mkdir(parents=True, exist_ok=True)
    entries = []
    with ui.bars() as bar:
        progress = bar("rendering")
        for i in range(count):
            clip = world.clip(i, "heldout" if heldout else "train")
            write_video(output / f"{i:06d}.mp4", clip.video, world.fps)
            entries.append(CaptionedFile(f"{i:06d}.mp4", clip.caption.text))
            progress(i + 1, count)
    write_captions(output / "captions.jsonl", entries)
    ui.say(f"{count} clips and captions.jsonl are in {output}")
