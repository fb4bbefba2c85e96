"""`avd prepare` and `avd world`: videos in."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from avd import ui

world_app = typer.Typer(help="The built-in world: procedural clips of which everything is known.", no_args_is_help=True)


def prepare(
    videos: Annotated[Path, typer.Argument(help="Folder of video files.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the cache.")],
    captions: Annotated[
        Path | None,
        typer.Option(
            "--captions",
            help="Table of files and captions: JSONL, CSV, TSV or Parquet; default: captions.jsonl in the folder, "
            "or else a .txt beside each video.",
        ),
    ] = None,
    file_column: Annotated[
        str | None, typer.Option("--file-column", help="Column of the file names; default: found by its usual names.")
    ] = None,
    caption_column: Annotated[
        str | None, typer.Option("--caption-column", help="Column of the captions; default: likewise.")
    ] = None,
    model: Annotated[str, typer.Option("--model", help="Model that will be distilled.")] = "wan-mini",
    frames: Annotated[int | None, typer.Option("--frames", help="Frames a clip, 4n + 1; default: the model's.")] = None,
    fps: Annotated[float | None, typer.Option("--fps", help="Frame rate; default: the model's.")] = None,
    height: Annotated[int | None, typer.Option("--height", help="Default: the model's.")] = None,
    width: Annotated[int | None, typer.Option("--width", help="Default: the model's.")] = None,
) -> None:
    """Encode videos and captions once, for distillation. Interrupted and run again, it continues.

    Example: avd prepare clips/ --captions clips/captions.jsonl --model wan-mini --output runs/cache
    """
    from avd.data import prepare as prepare_cache
    from avd.models.wan import VideoModel

    encoder = VideoModel.load(model)
    own = encoder.settings
    encoder.check_clip(frames or own.frames, height or own.height, width or own.width)
    with ui.bars() as bar:
        summary = prepare_cache(
            videos,
            captions,
            encoder,
            output,
            file_column=file_column,
            caption_column=caption_column,
            frames=frames or own.frames,
            fps=fps or own.fps,
            height=height or own.height,
            width=width or own.width,
            progress=bar("encoding videos"),
        )
    ui.say(f"kept {summary.kept} clips, {summary.seconds:.0f} s of video, {summary.size / 1e6:.1f} MB in {output}")
    for reason, count in summary.skipped.items():
        ui.say(f"skipped {count}: {reason} (named in {output / 'skipped.jsonl'})")


@world_app.command()
def render(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the files; must not hold any.")],
    count: Annotated[int, typer.Option("--count", "-n", help="How many clips.", min=1)] = 64,
    level: Annotated[int, typer.Option("--level", help="0 is the plainest.", min=0)] = 0,
    size: Annotated[int, typer.Option("--size", help="Pixels a side.", min=16)] = 48,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the world.", min=0)] = 0,
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
