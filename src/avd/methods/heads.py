"""Heads on features of a frozen network: one small module for each block, and a logit from each."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from avd.objectives.term import Heads


class FeatureHeads(nn.Module):
    """The heads that a term declares, for a network of `layers` blocks whose tokens have `inputs` values.

    Each normalises the tokens of its block, puts them through hidden units, and takes the mean of the tokens' logits.
    Heads of a shallow network may share a block.
    """

    def __init__(self, which: Heads, inputs: int, layers: int) -> None:
        super().__init__()
        self.blocks = tuple(math.ceil(depth * layers) - 1 for depth in which.depths)
        """The numbers of the blocks, from 0."""
        self.heads = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(inputs), nn.Linear(inputs, which.width), nn.SiLU(), nn.Linear(which.width, 1, bias=False)
            )
            for _ in which.depths
        )

    def draw(self, generator: torch.Generator) -> None:
        """Draw the weights again. The last layer's are 0: untrained heads are undecided, and teach nobody anything."""
        for name, parameter in self.named_parameters():
            if name.endswith("1.weight"):
                nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5, generator=generator)
            elif name.endswith(("1.bias", "3.weight")):
                nn.init.zeros_(parameter)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Logits (B, heads) of the features of `blocks`, (B, tokens, inputs) each."""
        return torch.cat([head(each).mean(1) for head, each in zip(self.heads, features, strict=True)], 1)
