"""Floating-point operations of a network, from the linear layers and the attention that its family counts.

A linear layer's adapter of rank r adds 2 r (inputs + outputs) a row. A backward pass takes every product twice, for
the gradients of both factors; where the weights are frozen, their products are taken once.
"""

from __future__ import annotations

from dataclasses import dataclass

from avd.config import AdaptersRecipe
from avd.models.sizes import Sizes


@dataclass(frozen=True)
class Flops:
    """Operations of one clip's forward, by what their backward takes."""

    weights: int
    """Products with the model's own weights."""
    attention: int
    adapters: int = 0

    @property
    def forward(self) -> int:
        return self.weights + self.attention + self.adapters

    @property
    def backward(self) -> int:
        """With adapters the other weights are frozen."""
        return (1 if self.adapters else 2) * self.weights + 2 * (self.attention + self.adapters)

    @property
    def input_backward(self) -> int:
        """The same to the input alone. Both factors of attention's products depend on it."""
        return self.weights + 2 * self.attention + self.adapters


def flops_of(sizes: Sizes, strides: tuple[int, int] = (1, 1), adapters: AdaptersRecipe | None = None) -> Flops:
    """Operations of one clip at these strides of frames, and of rows and columns.

    With `adapters` they are on; without, it is the bare model.
    """
    layers, added = list(sizes.linear_layers(*strides)), 0
    if adapters is not None:
        targets = adapters.targets or sizes.adapter_targets
        chosen = [x for x in layers if any(f".{x.name}".endswith(f".{target}") for target in targets)]
        added = sum(2 * adapters.rank * (x.inputs + x.outputs) * x.rows * x.count for x in chosen)
    return Flops(sum(layer.flops for layer in layers), sizes.attention_flops(*strides), added)
