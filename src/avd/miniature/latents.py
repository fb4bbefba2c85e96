"""Latents of the built-in world for the teacher: a VAE read from a run, and clips encoded once and kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from avd.miniature.architecture import LATENT_CHANNELS
from avd.models.wan.codec import encode_video
from avd.types import CountProgress, UserError
from avd.world import World

_BATCH = 16
_PART = 1024


def load_vae(folder: Path) -> AutoencoderKLWan:
    """The VAE of a folder that holds one, itself or in `vae/`. Raises UserError if there is none."""
    inner = folder / "vae"
    try:
        vae = AutoencoderKLWan.from_pretrained(inner if inner.is_dir() else folder, use_safetensors=True)
        found = (vae.config.z_dim, vae.config.scale_factor_temporal, vae.config.scale_factor_spatial)
        if found != (LATENT_CHANNELS, 4, 8):
            raise ValueError("of other sizes")
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{folder} holds no VAE of the miniature: name a folder that `avd train vae` wrote") from error
    return vae.eval().requires_grad_(False)


def world_latents_on_disk(
    folder: Path, vae: AutoencoderKLWan, world: World, count: int, progress: CountProgress | None = None
) -> Tensor:
    """Whitened latents (N, C, F, H, W) in half precision of the world's first `count` training clips.

    Encoded in parts kept in `folder`, so that a killed run resumes after the last complete part.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parts = []
    for start in range(0, count, _PART):
        path = folder / f"{start:07d}.safetensors"
        stop = min(start + _PART, count)
        if not path.exists():
            videos = (
                np.stack([world.clip(j).video for j in range(i, min(i + _BATCH, stop))])
                for i in range(start, stop, _BATCH)
            )
            latents = torch.cat([encode_video(vae, video) for video in videos]).half()
            writing = path.with_suffix(".writing")
            save_file({"latents": latents}, writing)
            writing.rename(path)
        parts.append(load_file(path)["latents"])
        if progress is not None:
            progress(stop, count)
    return torch.cat(parts)
