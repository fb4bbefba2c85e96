"""The sizes of a Wan model without its weights, and the operations of its forward.

A multiply-add is two operations; only products of matrices and attention are counted, as is usual. For N tokens of
width d, L text tokens of width t, a feed-forward of width f and latents of C channels in patches of p values, one clip
takes

    each block   self-attention    8 N d^2 + 4 N^2 d
                 cross-attention   4 N d^2 + 4 L d^2 + 4 N L d
                 feed-forward      4 N d f
    once         patches in, out   2 N C p d each
                 text              2 L (t d + d^2)
                 time              2 (256 d + d^2 + 6 d^2)
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from diffusers import WanTransformer3DModel

from avd.models.folders import ModelSource
from avd.models.settings import Settings
from avd.models.sizes import Linear, Sizes
from avd.models.wan.attention import check_backend
from avd.models.wan.configs import (
    check_parts,
    latent_shape,
    read_text_encoder,
    read_text_tokens,
    read_transformer,
    read_vae,
    settings_of,
)
from avd.models.wan.known import KNOWN, TEXT_TOKENS, KnownModel
from avd.models.wan.network import WanVelocity
from avd.types import UserError


@dataclass(frozen=True)
class WanSizes(Sizes):
    """`config` is the transformer's, in diffusers' form; its `num_layers` yields to `layers`."""

    adapter_targets: ClassVar[tuple[str, ...]] = ("to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2")

    config: Mapping[str, Any] = field(default_factory=dict)

    @property
    def width(self) -> int:
        return self.config["num_attention_heads"] * self.config["attention_head_dim"]

    @property
    def text_tokens(self) -> int:
        return self.conditions["embedding"][0]

    @property
    def patch_side(self) -> int:
        return math.lcm(*self.config["patch_size"][1:])

    def tokens(self, stride: int = 1, space_stride: int = 1) -> int:
        time, high, wide = self.config["patch_size"]
        _, _, rows, columns = self.latent_CFHW
        return (self.frames(stride) // time) * (rows // space_stride // high) * (columns // space_stride // wide)

    def linear_layers(self, stride: int = 1, space_stride: int = 1) -> Iterator[Linear]:
        """By its name in diffusers; the patch embedding is linear too."""
        config, d, layers = self.config, self.width, self.layers
        tokens, text = self.tokens(stride, space_stride), self.text_tokens
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

    def attention_flops(self, stride: int = 1, space_stride: int = 1) -> int:
        tokens = self.tokens(stride, space_stride)
        return 4 * tokens * (tokens + self.text_tokens) * self.width * self.layers

    def check_attention(
        self, backend: str, context: int = 1, device: torch.device | None = None, *, training: bool = True
    ) -> None:
        check_backend(backend, context, self.config["attention_head_dim"], device, training)

    def check_context(self, ranks: int) -> None:
        heads = self.config["num_attention_heads"]
        if heads % ranks:
            raise UserError(f"compute.context is {ranks}, and the model has {heads} attention heads: choose a divisor")

    def check_experts(self) -> None:
        """A pipeline of Wan's has room for two transformers."""

    def build(self) -> WanVelocity:
        return WanVelocity(WanTransformer3DModel.from_config({**self.config, "num_layers": self.layers}))

    def keeps_scores(self, attention: str | None) -> bool:
        return attention == "_native_math"


def make_sizes(transformer: Mapping[str, Any], latent_CFHW: tuple[int, int, int, int], text_tokens: int) -> WanSizes:
    """From a transformer's config."""
    conditions = {"embedding": (text_tokens, transformer["text_dim"])}
    return WanSizes(latent_CFHW, conditions, transformer["num_layers"], transformer)


def known_sizes(hub_id: str, settings: Settings | None = None) -> WanSizes:
    """Sizes of a published model, which need not be there: for clips of its own settings, or of others."""
    known = _known(hub_id)
    return _at_settings(known.transformer, known.vae, settings or known.settings, TEXT_TOKENS)


def known_settings(hub_id: str) -> Settings:
    """Likewise."""
    return _known(hub_id).settings


def sizes_of_folder(source: ModelSource) -> WanSizes:
    """From config files alone. Raises UserError if they are not those of a Wan text-to-video model."""
    with explained(source):
        transformer, vae = _read_configs(source)
        settings = settings_of(source, transformer, vae)
        sizes = _at_settings(transformer, vae, settings, read_text_tokens(source.folder))
        return replace(sizes, networks=2 if settings.high_stages else 1)


def settings_of_folder(source: ModelSource) -> Settings:
    """Likewise."""
    with explained(source):
        return settings_of(source, *_read_configs(source))


def _known(hub_id: str) -> KnownModel:
    return next(model for model in KNOWN.values() if model.hub_id == hub_id)


def _read_configs(source: ModelSource) -> tuple[dict[str, Any], dict[str, Any]]:
    """The transformer's and the VAE's."""
    transformer, vae = read_transformer(source.folder), read_vae(source.folder)
    has_text = (source.folder / "text_encoder" / "config.json").exists()
    check_parts(source, transformer, vae, read_text_encoder(source.folder) if has_text else None)
    return transformer, vae


@contextmanager
def explained(source: ModelSource) -> Iterator[None]:
    """Errors of reading a folder's config files inside the block become a UserError that names the model."""
    try:
        yield
    except UserError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{source.name} cannot be read as a Wan text-to-video model: {reason}") from error


def _at_settings(transformer: Mapping[str, Any], vae: Mapping[str, Any], clip: Settings, tokens: int) -> WanSizes:
    return make_sizes(transformer, latent_shape(vae, clip.frames, clip.height, clip.width), tokens)
