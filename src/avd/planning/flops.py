"""Floating-point operations of a Wan transformer.

A multiply-add is two operations; only products of matrices and attention are counted, as is usual. For N tokens of
width d, L text tokens of width t, a feed-forward of width f and latents of C channels in patches of p values, one clip
takes

    each block   self-attention    8 N d^2 + 4 N^2 d
                 cross-attention   4 N d^2 + 4 L d^2 + 4 N L d
                 feed-forward      4 N d f
    once         patches in, out   2 N C p d each
                 text              2 L (t d + d^2)
                 time              2 (256 d + d^2 + 6 d^2)

A linear layer's adapter of rank r adds 2 r (inputs + outputs) a row. A backward pass takes every product twice, for
the gradients of both factors; where the weights are frozen, their products are taken once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from avd.config import AdaptersRecipe
from avd.models.wan.skeleton import Skeleton


@dataclass(frozen=True)
class Linear:
    """`count` layers of one name and size, each applied to `rows` rows of a clip's forward."""

    name: str
    inputs: int
    outputs: int
    rows: int
    count: int = 1

    @property
    def flops(self) -> int:
        return 2 * self.inputs * self.outputs * self.rows * self.count


@dataclass(frozen=True)
class Flops:
    """Of one clip's forward, by what their backward takes."""

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


def linear_layers(skeleton: Skeleton, stride: int = 1) -> Iterator[Linear]:
    """Every linear layer (and the patch embedding, which is one) of a transformer, by its name in diffusers."""
    config, d, layers = skeleton.config, skeleton.width, skeleton.layers
    tokens, text = skeleton.tokens(stride), skeleton.text_tokens
    patch = math.prod(config["patch_size"])
    yield Linear("patch_embedding", config["in_channels"] * patch, d, tokens)
    yield Linear("condition_embedder.time_embedder.linear_1", config["freq_dim"], d, 1)
    yield Linear("condition_embedder.time_embedder.linear_2", d, d, 1)
    yield Linear("condition_embedder.time_proj", d, 6 * d, 1)
    yield Linear("condition_embedder.text_embedder.linear_1", config["text_dim"], d, text)
    yield Linear("condition_embedder.text_embedder.linear_2", d, d, text)
    for attention, context in (("attn1", tokens), ("attn2", text)):
        yield Linear(f"{attention}.to_q", d, d, tokens, layers)
        yield Linear(f"{attention}.to_k", d, d, context, layers)
        yield Linear(f"{attention}.to_v", d, d, context, layers)
        yield Linear(f"{attention}.to_out.0", d, d, tokens, layers)
    yield Linear("ffn.net.0.proj", d, config["ffn_dim"], tokens, layers)
    yield Linear("ffn.net.2", config["ffn_dim"], d, tokens, layers)
    yield Linear("proj_out", d, config["out_channels"] * patch, tokens)


def flops_of(skeleton: Skeleton, stride: int = 1, adapters: AdaptersRecipe | None = None) -> Flops:
    """Of one clip at every `stride`-th latent frame, with `adapters` on or, without, as the bare model."""
    tokens, layers = skeleton.tokens(stride), list(linear_layers(skeleton, stride))
    attention = 4 * tokens * (tokens + skeleton.text_tokens) * skeleton.width * skeleton.layers
    added = 0
    if adapters is not None:
        chosen = [x for x in layers if any(f".{x.name}".endswith(f".{target}") for target in adapters.targets)]
        added = sum(2 * adapters.rank * (x.inputs + x.outputs) * x.rows * x.count for x in chosen)
    return Flops(sum(layer.flops for layer in layers), attention, added)
