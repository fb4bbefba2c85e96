"""Exponential moving average of a network's weights."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn


class Weighted(Protocol):
    """A module, or anything else that has parameters."""

    def parameters(self) -> Iterator[nn.Parameter]: ...


WeightedT = TypeVar("WeightedT", bound=Weighted)


class EMA(Generic[WeightedT]):
    """Keeps `average <- decay * average + (1 - decay) * weights`, with a warm-up that forgets the first weights.

    The decay of update n (from 0) is min(decay, (1 + n) / (10 + n)), so a short run is not dominated by where it began.
    The average is kept in `module`: a frozen copy of the module given, or `into`, which holds the same weights.
    """

    def __init__(self, module: WeightedT, decay: float, into: WeightedT | None = None) -> None:
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"EMA decay is {decay}: it must be in [0, 1)")
        self.module = copy.deepcopy(module) if into is None else into
        for parameter in self.module.parameters():
            parameter.requires_grad_(False)
        if isinstance(self.module, nn.Module):
            self.module.eval()
        self.decay = decay

    @torch.no_grad()
    def update(self, module: WeightedT, n: int) -> None:
        decay = min(self.decay, (1 + n) / (10 + n))
        average: list[Tensor] = list(self.module.parameters())
        weights: list[Tensor] = list(module.parameters())
        torch._foreach_lerp_(average, weights, 1.0 - decay)
