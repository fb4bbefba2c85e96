"""Rotary positions for a sequence of every s-th frame, or of every r-th row and column of its frames."""

from __future__ import annotations

import torch
from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed
from torch import Tensor, nn


class StridedRotary(nn.Module):
    """Wraps a Wan transformer's rotary embedding so that frame i may stand at position `frame_stride` * i, and row and
    column j at `space_stride` * j.

    It computes the table of the full sequence and keeps every s-th frame of it, and every r-th row and column of
    patches, so a strided input carries the true positions of what it holds. A patch of a strided picture spans r times
    as much of the full one, so its centre lies a constant part of a patch further on; attention depends on differences
    of positions alone, which are exact. It has no parameters and no saved buffers: a state dict does not change.
    """

    def __init__(self, rope: WanRotaryPosEmbed) -> None:
        super().__init__()
        self.rope = rope
        self.frame_stride = self.space_stride = 1

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        if self.frame_stride == self.space_stride == 1:
            return self.rope(hidden_states)
        strides = (self.frame_stride, self.space_stride, self.space_stride)
        patches = [size // side for size, side in zip(hidden_states.shape[2:], self.rope.patch_size, strict=True)]
        spans = [(count - 1) * stride + 1 for count, stride in zip(patches, strides, strict=True)]
        sizes = [span * side for span, side in zip(spans, self.rope.patch_size, strict=True)]
        full = torch.empty(*hidden_states.shape[:2], *sizes, device="meta")  # only its shape is read
        cos, sin = self.rope(full)
        return self._thin(cos, spans), self._thin(sin, spans)

    def _thin(self, table: Tensor, spans: list[int]) -> Tensor:
        frame, space = self.frame_stride, self.space_stride
        return table.unflatten(1, spans)[:, ::frame, ::space, ::space].flatten(1, 3)
