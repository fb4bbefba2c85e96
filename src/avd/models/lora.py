"""Low-rank changes of linear layers by themselves (LoRA, arXiv 2106.09685), and the weights that they make of a base.

A layer of weight W becomes W + B A; alpha / rank is in B. The sum is made in float32 from the weights as they are
stored: on the grid of bfloat16 a small change would be rounded away.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from avd.models.weights import Weights

WEIGHT = ".weight"


@dataclass(frozen=True)
class LoraMatrices:
    """Pairs of matrices by the name of their layer. `read` gives (A, B), float32, on the CPU: (rank, inputs) and
    (outputs, rank)."""

    shapes: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]
    """The shapes of each layer's A and B."""
    read: Callable[[str], tuple[Tensor, Tensor]]

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> LoraMatrices:
        """From tensors named `<layer>.lora_A.weight` and `<layer>.lora_B.weight`.

        Raises ValueError for any other name, and for half a pair.
        """
        matrices: dict[str, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            layer, _, which = name.rpartition(".lora_")
            if which not in ("A.weight", "B.weight"):
                raise ValueError(f"it holds {name}, which is no matrix of a LoRA")
            matrices.setdefault(layer, {})[which[0]] = tensor
        half = [layer for layer, pair in matrices.items() if len(pair) < 2]
        if half:
            raise ValueError(f"of {min(half)} it holds half a pair")
        shapes = {layer: (tuple(pair["A"].shape), tuple(pair["B"].shape)) for layer, pair in matrices.items()}
        return cls(shapes, lambda layer: (matrices[layer]["A"].float(), matrices[layer]["B"].float()))

    @classmethod
    def fresh(cls, base: Weights, layers: Iterable[str], rank: int, seed: Callable[[str], int]) -> LoraMatrices:
        """One that changes nothing yet: B is zero, and A is drawn from `seed(layer)`, uniform up to inputs^-1/2."""

        def read(layer: str) -> tuple[Tensor, Tensor]:
            outputs, inputs = base.shapes[layer + WEIGHT]
            generator = torch.Generator().manual_seed(seed(layer))
            return (2 * torch.rand(rank, inputs, generator=generator) - 1) * inputs**-0.5, torch.zeros(outputs, rank)

        sizes = {layer: base.shapes[layer + WEIGHT] for layer in layers}
        return cls({layer: ((rank, inputs), (outputs, rank)) for layer, (outputs, inputs) in sizes.items()}, read)

    @property
    def ranks(self) -> dict[str, int]:
        """The rank of each layer's pair."""
        return {layer: down[0] for layer, (down, _) in self.shapes.items()}


class MergedWeights:
    """`Weights` of a base with a LoRA in it. Raises ValueError for a LoRA of layers that the base does not have."""

    def __init__(self, base: Weights, lora: LoraMatrices) -> None:
        self._base, self._lora = base, lora
        self.shapes = base.shapes
        for layer, (down, up) in lora.shapes.items():
            if base.shapes.get(layer + WEIGHT) != (up[0], down[1]) or up[1] != down[0]:
                raise ValueError(f"it changes {layer}, and its base has no such linear layer")

    def changes(self, name: str) -> bool:
        """Whether the LoRA changes a tensor."""
        return name.endswith(WEIGHT) and name.removesuffix(WEIGHT) in self._lora.shapes

    def region(self, name: str, offset: tuple[int, ...], shape: tuple[int, ...]) -> Tensor:
        if not self.changes(name):
            return self._base.region(name, offset, shape)
        # Collected from all ranks, perhaps: before anything that can fail on this one.
        down, up = self._lora.read(name.removesuffix(WEIGHT))
        (row, column), (rows, columns) = offset, shape
        change = up[row : row + rows] @ down[:, column : column + columns]
        return self._base.region(name, offset, shape).float() + change
