"""`avd inspect`: look at a latent cache before training on it, or at what made a video."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from avd import ui

if TYPE_CHECKING:
    from avd.data import EncodedTexts, LatentCache
    from avd.models.family import TextToVideo

_DECODED = 16
_EXAMPLES = 5


def inspect(
    cache: Annotated[
        Path, typer.Argument(metavar="CACHE_OR_VIDEO", help="A cache of `avd prepare`, or a video of `avd generate`.")
    ],
    model: Annotated[
        str | None, typer.Option("--model", help="The model it was made with: decodes some clips and measures colours.")
    ] = None,
    sheet: Annotated[
        Path | None, typer.Option("--sheet", help="PNG to write with frames of the decoded clips; needs --model.")
    ] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Also read everything and compare checksums.")] = False,
) -> None:
    """Say what a latent cache holds, check that no file is missing or cut short, and show some of its clips; of a
    video, what made it.

    Example: avd inspect runs/cache --model wan-mini --sheet runs/cache.png
    """
    from avd.data import EncodedTexts, LatentCache
    from avd.data.cache import MANIFEST, is_begun
    from avd.data.texts import TEXTS
    from avd.engine.sources import open_cache
    from avd.evaluation.cache_report import report_on
    from avd.models.family import open_model
    from avd.types import UserError

    if cache.is_file() or (cache / "00000.png").exists():
        _show_video(cache)
        return
    if (cache / TEXTS).exists() and not (cache / MANIFEST).exists() and not is_begun(cache):
        _show_prompts(EncodedTexts(cache), verify=verify)
        return
    if sheet is not None and model is None:
        raise UserError("--sheet needs --model, the model that the cache was made with")
    network = None if model is None else open_model(model)
    opened = LatentCache(cache) if network is None else open_cache(cache, network)
    if verify:
        opened.verify()
    report, geometry = report_on(opened), opened.geometry
    size = sum(entry.stat().st_size for entry in cache.rglob("*") if entry.is_file())
    fewest, most = report.words
    least, greatest = report.clips_per_file
    examples = first_different(opened.captions)
    _tell("cache", f"{cache}: {report.clips} clips, {report.seconds:,.0f} s of video, {size / 1e6:,.1f} MB")
    _tell("model", opened.identity)
    _tell("files", f"{report.files}, {least} to {greatest} clips of each, of {report.source_seconds:,.0f} s in all")
    _tell("clips", f"{geometry.frames} frames of {geometry.height} x {geometry.width} at {geometry.fps:g} fps")
    prompts = ", ".join(f"{name} {_shape(shape)}" for name, shape in opened.condition_shapes.items())
    _tell("latents", f"{_shape(opened.latent_shape)}; prompts: {prompts}")
    _tell("checksums", _checksums(verify))
    _tell("skipped", ", ".join(f"{n} {reason}" for reason, n in report.skipped.items()) or "none")
    _tell("captions", f"{report.different_captions} different ones, of {fewest} to {most} words, such as")
    for caption in examples:
        _tell("", caption)
    spread = f"mean {report.latent_mean:+.2f}, standard deviation {report.latent_std:.2f} (usual: 0 and 1)"
    _tell("values", f"{spread}, of {report.sampled} clips")
    _tell(
        "repeated",
        f"{report.repeated_share:.1%} of frames show what the one before shows; "
        f"a fifth or more of them in {report.upsampled_share:.1%} of clips",
    )
    _tell("motion", f"{report.still_share:.0%} of clips nearly still; temporal loss {report.temporal_loss:.2f}")
    if network is not None:
        _show_pixels(opened, network, sheet)


def first_different(captions: Iterable[str]) -> list[str]:
    """Captions for a look: the first different ones, in one pass however many there are."""
    return list(islice(dict.fromkeys(captions), _EXAMPLES))


def _show_prompts(texts: EncodedTexts, *, verify: bool) -> None:
    """What a folder of prompts without clips holds."""
    if verify:
        texts.verify()
    _tell("prompts", f"{texts.folder}: {len(texts.prompts)} listed, of {len(texts)} encoded texts, such as")
    for prompt in texts.prompts[:_EXAMPLES]:
        _tell("", prompt)
    _tell("model", texts.identity)
    _tell("shapes", ", ".join(f"{name} {_shape(shape)}" for name, shape in texts.condition_shapes.items()))
    _tell("checksums", _checksums(verify))


def _checksums(verify: bool) -> str:
    return "right" if verify else "not compared: --verify reads everything"


def _show_pixels(cache: LatentCache, model: TextToVideo, sheet: Path | None) -> None:
    """Decode some clips with the model, say how they look, and write the sheet."""
    from avd.evaluation.cache_report import decode_some, report_on_pixels
    from avd.report import contact_sheet

    videos, captions = decode_some(cache, model, _DECODED)
    pixels = report_on_pixels(videos)
    _tell(
        "colours",
        f"saturation {pixels.saturation:.3f}, brightness {pixels.brightness:.3f}, contrast {pixels.contrast:.3f}; "
        f"change between frames {pixels.change:.4f} (of {len(videos)} clips)",
    )
    if sheet is not None:
        contact_sheet(sheet, [(caption, [video]) for caption, video in zip(captions, videos, strict=True)])
        _tell("sheet", str(sheet))


def _show_video(video: Path) -> None:
    from avd.sampling.generation import read_description
    from avd.types import UserError

    about = read_description(video)
    if about is None:
        raise UserError(f"{video} does not say what made it: only files of `avd generate` do")
    for key, value in about.items():
        _tell(f"{key:<18}", ", ".join(map(str, value)) if isinstance(value, list) else str(value))


def _tell(what: str, text: str) -> None:
    ui.out.print(f"{what:<10}{text}", highlight=False, markup=False, soft_wrap=True)


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
