"""Exponential moving average of a module's weights."""

from __future__ import annotations

import copy
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


class EMA(Generic[M]):
    """Keeps `average <- decay * average + (1 - decay) * weights`, with a warm-up that forgets the first weights.

    The decay of update n (from 0) is min(decay, (1 + n) / (10 + n)), so a short run is not dominated by where it began.
    """

    def __init__(self, module: M, decay: float) -> None:
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"EMA decay is {decay}: it must lie in [0, 1)")
        self.module = copy.deepcopy(module).eval().requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, module: M, n: int) -> None:
        decay = min(self.decay, (1 + n) / (10 + n))
        average: list[Tensor] = list(self.module.parameters())
        weights: list[Tensor] = list(module.parameters())
        torch._foreach_lerp_(average, weights, 1.0 - decay)
