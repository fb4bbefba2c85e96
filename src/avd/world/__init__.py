"""The built-in world: short captioned clips of which everything is known."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from avd.types import UserError
from avd.world.grammar import (
    Caption,
    Promises,
    ThingPromise,
    is_caption,
    read_promises,
    unknown_words,
    vocabulary,
    write_caption,
)
from avd.world.render import render
from avd.world.scene import LEVELS, Level, Scene, Split, Thing, sample_scene, scene_rng

__all__ = [
    "LEVELS",
    "Caption",
    "Level",
    "Promises",
    "Scene",
    "Split",
    "Thing",
    "ThingPromise",
    "World",
    "WorldClip",
    "is_caption",
    "read_promises",
    "render",
    "unknown_words",
    "vocabulary",
]


@dataclass(frozen=True)
class WorldClip:
    """A rendered clip: uint8 video (F, H, W, 3), the scene that made it, and its caption."""

    video: np.ndarray
    scene: Scene
    caption: Caption


@dataclass(frozen=True)
class World:
    """A seeded, unlimited set of captioned clips.

    `frames` is 4n + 1 for a video VAE that compresses time by four. The train and held-out splits are drawn from
    disjoint random streams.
    """

    level: int = 0
    size: int = 48
    frames: int = 17
    fps: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.level < len(LEVELS):
            raise UserError(f"world level is {self.level}: choose 0 to {len(LEVELS) - 1}")

    def describe(self, index: int, split: Split = "train", *, caption: int = 0) -> tuple[Scene, Caption]:
        """Scene number `index` and one of its captions, without drawing it. Any `caption` describes it truly."""
        rng = scene_rng(self.seed, split, index)
        scene = sample_scene(rng, LEVELS[self.level], self.frames)
        if caption:
            rng = scene_rng(self.seed, split, index, caption)
        return scene, write_caption(rng, scene)

    def clip(self, index: int, split: Split = "train") -> WorldClip:
        """Clip number `index` of a split."""
        scene, caption = self.describe(index, split)
        return WorldClip(render(scene, self.size), scene, caption)
