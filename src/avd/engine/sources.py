"""Where training's latents come from: a cache of somebody's videos, or the built-in world, encoded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from avd.data import LatentCache, LatentSource, MemoryLatents
from avd.models.family import TextToVideo
from avd.models.settings import Settings
from avd.types import Conditions, CountProgress, UserError
from avd.world import Split, World

_BATCH = 16


def open_cache(path: Path, model: TextToVideo) -> LatentCache:
    """A cache that fits `model`. Raises UserError if it was made with another model's VAE or text encoder."""
    cache = LatentCache(path)
    check_identity(cache, model)
    return cache


def check_identity(cache: LatentCache, model: TextToVideo) -> None:
    """Raise UserError if `cache` was made with the VAE or the text encoder of another model."""
    if cache.identity != model.identity:
        raise UserError(
            f"cache {cache.path} was prepared with another model ({cache.identity}, this one is {model.identity}): "
            "run `avd prepare` with the model you distil"
        )


def world_of(settings: Settings, level: int, model: str) -> World:
    """The built-in world with clips of the size, length and frame rate that `model` makes by its settings.

    Raises UserError for clips that are not square, as the world draws no others, and for a level that there is not.
    """
    if settings.height != settings.width:
        raise UserError(
            f"model {model} makes clips of {settings.height} x {settings.width} and the built-in world draws "
            "squares: give videos of your own with --data CACHE"
        )
    return World(level, settings.height, settings.frames, round(settings.fps))


def encode_world(
    model: TextToVideo, world: World, count: int, split: Split = "train", progress: CountProgress | None = None
) -> MemoryLatents:
    """The first `count` clips of a split of the world, encoded, with their captions' conditions."""
    latents, prompts, captions = [], [], []
    for start in range(0, count, _BATCH):
        clips = [world.clip(i, split) for i in range(start, min(start + _BATCH, count))]
        captions += [clip.caption.text for clip in clips]
        latents.append(model.encode_video(np.stack([clip.video for clip in clips])))
        prompts.append(model.encode_prompts(captions[start:]))
        if progress is not None:
            progress(len(captions), count)
    return MemoryLatents(torch.cat(latents), Conditions.cat(prompts), captions)


class SourceSlice:
    """Consecutive items of another source, as a source."""

    def __init__(self, source: LatentSource, start: int, stop: int) -> None:
        self._source, self._range = source, range(start, stop)

    def __len__(self) -> int:
        return len(self._range)

    @property
    def captions(self) -> Sequence[str]:
        return [self._source.captions[i] for i in self._range]

    def latents(self, indices: Sequence[int]) -> Tensor:
        return self._source.latents([self._range[i] for i in indices])

    def prompts(self, indices: Sequence[int]) -> Conditions:
        return self._source.prompts([self._range[i] for i in indices])
