"""Text encoder and VAE of a Wan model without their weights: what planning needs to know of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffusers import AutoencoderKLWan
from torch import Tensor, nn
from transformers import UMT5Config, UMT5EncoderModel

from avd.models.folders import ModelSource
from avd.models.sizes import OtherParts, Tiles
from avd.models.wan.configs import read_text_encoder, read_text_tokens, read_vae
from avd.models.wan.known import KNOWN, TEXT_TOKENS, UMT5_XXL
from avd.models.wan.sizes import explained

_UNUSED = {"architectures", "model_type", "dtype", "torch_dtype", "transformers_version", "_name_or_path"}


class WanParts(OtherParts):
    """From the configs of both; `prompt_length` is the tokenizer's."""

    tiles = Tiles(side=256, stride=192)
    """The defaults of diffusers' class."""

    def __init__(self, text_encoder: Mapping[str, Any], vae: Mapping[str, Any], prompt_length: int) -> None:
        self._text_encoder, self._vae, self._prompt_length = text_encoder, vae, prompt_length

    @property
    def prompt_length(self) -> int:
        return self._prompt_length

    def build_text_encoder(self) -> nn.Module:
        config = {key: value for key, value in self._text_encoder.items() if key not in _UNUSED}
        return UMT5EncoderModel(UMT5Config(**config))

    def build_encoder(self) -> nn.Module:
        return _Encoder(AutoencoderKLWan.from_config(dict(self._vae)))

    def build_decoder(self) -> nn.Module:
        return _Decoder(AutoencoderKLWan.from_config(dict(self._vae)))


class _Encoder(nn.Module):
    def __init__(self, vae: AutoencoderKLWan) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, pixels: Tensor) -> Tensor:
        return self.vae.encode(pixels).latent_dist.mode()


class _Decoder(nn.Module):
    def __init__(self, vae: AutoencoderKLWan) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, latents: Tensor) -> Tensor:
        return self.vae.decode(latents).sample


def known_parts(hub_id: str) -> WanParts:
    """Parts of a published model, which need not be there."""
    known = next(model for model in KNOWN.values() if model.hub_id == hub_id)
    return WanParts(UMT5_XXL, known.vae, TEXT_TOKENS)


def parts_of_folder(source: ModelSource) -> WanParts:
    """From config files alone. Raises UserError if they are not there, or not those of a Wan model."""
    folder = source.folder
    with explained(source):
        return WanParts(read_text_encoder(folder), read_vae(folder), read_text_tokens(folder))
