"""Pixels to and from a Wan VAE's whitened latents."""

from __future__ import annotations

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from torch import Tensor

_AT_ONCE = 2**16
"""Latent values that are decoded together; a clip of the miniature has 2,160, one of Wan2.1 two million."""


def to_signed(video: np.ndarray) -> Tensor:
    """uint8 (B, F, H, W, 3) to float (B, 3, F, H, W) in [-1, 1], as a VAE takes it."""
    return torch.from_numpy(np.ascontiguousarray(video.transpose(0, 4, 1, 2, 3))).float() / 127.5 - 1.0


def to_uint8(video: Tensor) -> np.ndarray:
    """Float (B, 3, F, H, W) in [-1, 1] to uint8 (B, F, H, W, 3)."""
    rounded = ((video.float().clamp(-1, 1) + 1.0) * 127.5).round().to(torch.uint8)
    return rounded.permute(0, 2, 3, 4, 1).contiguous().cpu().numpy()


def whiten(vae: AutoencoderKLWan, z: Tensor) -> Tensor:
    """(z - mean) / std with the VAE's own statistics per channel."""
    mean, std = _statistics(vae, z)
    return (z - mean) / std


def unwhiten(vae: AutoencoderKLWan, x: Tensor) -> Tensor:
    mean, std = _statistics(vae, x)
    return x * std + mean


@torch.no_grad()
def encode_video(vae: AutoencoderKLWan, frames: np.ndarray) -> Tensor:
    """uint8 (B, F, H, W, 3) to whitened latents (B, C, F', H', W') on the CPU: the posterior's mode."""
    return whiten(vae, vae.encode(to_signed(frames).to(vae.device)).latent_dist.mode()).cpu()


@torch.no_grad()
def decode_video(vae: AutoencoderKLWan, latents: Tensor) -> np.ndarray:
    """Whitened latents to uint8 (B, F, H, W, 3), a few small clips at a time or a large one."""
    batch = max(1, min(8, _AT_ONCE // latents[0].numel()))
    parts = (vae.decode(unwhiten(vae, part.to(vae.device))).sample for part in latents.split(batch))
    return np.concatenate([to_uint8(part) for part in parts])


def _statistics(vae: AutoencoderKLWan, like: Tensor) -> tuple[Tensor, Tensor]:
    mean, std = (like.new_tensor(v).view(1, -1, 1, 1, 1) for v in (vae.config.latents_mean, vae.config.latents_std))
    return mean, std
