"""Rotary positions for a sequence of every s-th frame."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class StridedRotary(nn.Module):
    """Wraps a Wan transformer's rotary embedding so that frame i may stand at position `frame_stride` * i.

    It computes the table of the full-rate sequence and keeps every s-th frame of it, so a half-rate input carries the
    true positions of the frames it holds. It has no parameters and no saved buffers: a state dict does not change.
    """

    def __init__(self, rope: nn.Module) -> None:
        super().__init__()
        self.rope = rope
        self.frame_stride = 1

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        if self.frame_stride == 1:
            return self.rope(hidden_states)
        batch, channels, frames, height, width = hidden_states.shape
        span = (frames - 1) * self.frame_stride + 1
        full = torch.empty(batch, channels, span, height, width, device="meta")  # only its shape is read
        cos, sin = self.rope(full)
        return self._thin(cos, span), self._thin(sin, span)

    def _thin(self, table: Tensor, span: int) -> Tensor:
        return table.unflatten(1, (span, -1))[:, :: self.frame_stride].flatten(1, 2)
