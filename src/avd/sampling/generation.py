"""Prompts to files, one video at a time: each is written as soon as it is made, with what made it.

Which file holds which video, and the noise it is made from, follow from the list of videos alone. So processes may
share the list, each making every n-th video, and a list that was cut short is taken up by what is missing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from avd import __version__
from avd.data.video.writing import check_output, read_comment, write_clip
from avd.files import check_can_make
from avd.sampling.placement import encoded_first
from avd.sampling.samplers import Sampler
from avd.types import UserError

_OF_ONE_VIDEO = {"avd", "prompt", "seed", "model"}
"""What a file says of itself that other videos of the same sampler need not share."""


@dataclass(frozen=True)
class Wanted:
    """One video: what it shows, the seed of its noise, and the file or folder it goes to."""

    prompt: str
    seed: int
    path: Path


def list_videos(prompts: Sequence[str], seed: int, count: int, output: Path) -> list[Wanted]:
    """`count` videos of each prompt, with seeds from `seed` on; several get -0, -1 ... before the suffix of `output`.

    Raises UserError for an output that cannot be made.
    """
    check_output(output)
    check_can_make(output)
    pairs = [(text, seed + i) for text in prompts for i in range(count)]
    many = len(pairs) > 1
    paths = [output.with_stem(f"{output.stem}-{i}") if many else output for i in range(len(pairs))]
    return [Wanted(text, own_seed, path) for (text, own_seed), path in zip(pairs, paths, strict=True)]


def select_missing(videos: Sequence[Wanted], *, skip_existing: bool) -> list[Wanted]:
    """Those whose file is not there.

    Raises UserError for a file that is there, or with `skip_existing` for one that is broken or another video.
    """
    missing, remedy = [], "remove it, or name another file"
    for video in videos:
        if not video.path.exists():
            missing.append(video)
        elif not skip_existing:
            raise UserError(f"output {video.path} exists already: name another file, or keep it with --skip-existing")
        else:
            try:
                about = read_description(video.path)
            except UserError as error:
                raise UserError(f"output {video.path} is no video: {remedy}") from error
            if about is None or (about.get("prompt"), about.get("seed")) != (video.prompt, video.seed):
                raise UserError(f"output {video.path} is not the video of this prompt and seed: {remedy}")
    return missing


def check_made_by(sampler: Sampler, videos: Sequence[Wanted]) -> None:
    """Raise UserError for a file among `videos`, which are there, that another model or way of sampling made."""
    if not videos:
        return
    wanted = {**sampler.description, "identity": sampler.identity}
    for video in videos:
        about = read_description(video.path) or {}
        for key in sorted(wanted.keys() | about.keys() - _OF_ONE_VIDEO, key=lambda key: (key == "identity", key)):
            found, given = (json.dumps(each.get(key), ensure_ascii=False) for each in (about, wanted))
            if found != given and key == "identity":
                raise UserError(
                    f"output {video.path} was made by other weights ({about.get('model')}): name another file"
                )
            if found != given:
                raise UserError(
                    f"output {video.path} was made with {key} {found}, and {given} is asked for: name another file"
                )


def generate(
    sampler: Sampler,
    videos: Sequence[Wanted],
    model: str,
    *,
    made: Callable[[int, Wanted], None],
    fps: float | None = None,
) -> None:
    """Make videos; `made` is called after each with their number so far. `model` is the name it goes by.

    `fps` is the rate of the files; None is the model's own.
    """
    fps = sampler.model.settings.fps if fps is None else fps
    batches = [(video, [video.prompt]) for video in videos]
    about = {"model": model, "identity": sampler.identity, **sampler.description}
    for done, video in enumerate(encoded_first(sampler.model, batches, sampler.unconditional), start=1):
        latents = sampler([video.prompt], torch.Generator().manual_seed(video.seed))
        frames = sampler.model.decode_video(latents)[0]
        video.path.parent.mkdir(parents=True, exist_ok=True)
        write_clip(video.path, frames, fps, _comment(video, about))
        made(done, video)


def read_description(path: Path) -> dict[str, Any] | None:
    """What a video that `generate` wrote says of itself; None for one from elsewhere.

    Raises UserError for what is no video.
    """
    comment = read_comment(path)
    try:
        about = json.loads(comment or "")
    except ValueError:
        return None
    return about if isinstance(about, dict) and "avd" in about else None


def _comment(video: Wanted, about: dict[str, Any]) -> str:
    return json.dumps({"avd": __version__, "prompt": video.prompt, "seed": video.seed, **about})
