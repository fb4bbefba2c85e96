"""Attention backends of diffusers: which there are, and whether one works here."""

from __future__ import annotations

import torch
from diffusers.models.attention_dispatch import (
    AttentionBackendName,
    _AttentionBackendRegistry,
    attention_backend,
    dispatch_attention_fn,
)

from avd.types import UserError


def check_backend(name: str, context: int, head_dim: int, device: torch.device | None, training: bool) -> None:
    """Raise UserError for a backend that diffusers does not know, that cannot share sequences over `context` ranks,
    or, with a device, that cannot compute there, in `training` with a gradient. On the device it is tried on a few
    tokens."""
    known = sorted(each.value for each in AttentionBackendName)
    if name not in known:
        raise UserError(f"attention is {name!r}: leave it out (null in a recipe), or choose one of {', '.join(known)}")
    sharing = sorted(_AttentionBackendRegistry._supports_context_parallel)
    if context > 1 and name not in sharing:
        raise UserError(
            f"compute.attention is {name!r}, which cannot share sequences, and compute.context is {context}: "
            f"choose one of {', '.join(sharing)}"
        )
    if device is None:
        return
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    q, k, v = (torch.zeros(1, 16, 1, head_dim, dtype=dtype, device=device, requires_grad=training) for _ in range(3))
    try:
        with attention_backend(name):
            found = dispatch_attention_fn(q, k, v)
        if training:
            found.sum().backward()
    except Exception as error:  # packages that are missing, devices and sizes it was not made for: as each sees fit
        reason = (str(error) or type(error).__name__).partition("\n")[0].rstrip(". ")
        raise UserError(
            f"attention is {name!r}, which does not work here ({reason}): leave it out (null in a recipe)"
        ) from error
