"""What is asked of a model to be a teacher and, with other weights, its student.

`avd.models.wan.model.VideoModel` is that for the Wan family; docs/adding-a-model.md says what another would need.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from avd.models.settings import Settings
from avd.types import Conditions, Velocity


class TextToVideo(Protocol):
    """Pixels and prompts in and out of what a network is trained on, and the network itself.

    Clips are uint8 (B, F, H, W, 3); latents are whitened, float (B, C, F', H', W'); prompts are encoded once, as
    `Conditions` of the same shapes for all. Everything past this protocol knows latents and conditions only.
    """

    settings: Settings
    """Clip geometry, and how the model is sampled."""

    @property
    def folder(self) -> Path | None:
        """Where it was loaded from; an interpolator may lie there."""
        ...

    @property
    def identity(self) -> str:
        """Changes whenever cached latents or prompt embeddings would no longer fit the model."""
        ...

    @property
    def device(self) -> torch.device:
        """Where clips and prompts are encoded and decoded. What the methods take and give is on the CPU."""
        ...

    def velocity(self, device: torch.device | None = None) -> Velocity:
        """The network, on `device` if given, in the flow convention of `avd.flow`; it keeps a clip's true positions at
        any frame stride."""
        ...

    def fresh_velocity(self) -> Velocity:
        """A trainable copy, for a student or a fake score that starts from the model."""
        ...

    def latent_shape(self, frames: int | None = None) -> tuple[int, int, int, int]:
        """(C, F', H', W') of a clip of the settings' size, or of `frames` frames."""
        ...

    def check_clip(self, frames: int, height: int, width: int) -> None:
        """Raise UserError unless the model can encode and denoise clips of this size."""
        ...

    def encode_video(self, frames: np.ndarray) -> Tensor:
        """Clips to latents, without randomness."""
        ...

    def decode_video(self, latents: Tensor) -> np.ndarray:
        """Latents to clips."""
        ...

    def encode_prompts(self, prompts: list[str]) -> Conditions:
        """The conditions of prompts, float32; those of "" are the null prompt of guidance."""
        ...

    def drop(self, *parts: str) -> None:
        """Forget parts (`text_encoder`, `vae`, `transformer`) until they are needed again."""
        ...

    def save(self, folder: Path, weights: Mapping[str, Tensor] | None = None, **settings: Any) -> None:
        """Write a folder that loads again, and in the family's stock pipeline: with other weights, settings."""
        ...
