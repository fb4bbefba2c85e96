"""A stand-in for sampler and model that makes clips of the built-in world, without any network."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from avd.models.settings import Settings
from avd.world import World

WORLD = World()


@dataclass
class Painter:
    """Its "latents" are numbers of held-out clips, which the noise chooses; decoding renders them."""

    steps: int = 4
    network_calls: int = 4
    identity: str = "painter"
    unconditional: tuple[str, ...] = ()
    settings: Settings = field(default_factory=lambda: Settings(frames=17, height=48, width=48, fps=8))
    shape: tuple[int, int, int, int] = (12, 5, 6, 6)
    prompts: list[list[str]] = field(default_factory=list)
    """The prompts of each batch."""
    seeds: list[int] = field(default_factory=list)
    """The seed of each batch's noise."""

    @property
    def model(self) -> Painter:
        return self

    def latent_shape(self, frames: int | None = None) -> tuple[int, int, int, int]:
        return self.shape

    def __call__(self, prompts: list[str], generator: torch.Generator) -> Tensor:
        self.prompts.append(prompts)
        self.seeds.append(generator.initial_seed())
        return torch.randint(40, (len(prompts),), generator=generator)

    def decode_video(self, latents: Tensor) -> np.ndarray:
        return np.stack([WORLD.clip(int(i), "heldout").video for i in latents])


class TruthPainter(Painter):
    """Draws the held-out clips one after the other: the right answers to their captions, in order."""

    drawn: int = 0

    def __call__(self, prompts: list[str], generator: torch.Generator) -> Tensor:
        super().__call__(prompts, generator)
        start, self.drawn = self.drawn, self.drawn + len(prompts)
        return torch.arange(start, self.drawn)
