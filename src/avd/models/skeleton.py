"""The sizes of a Wan model without its weights: read from config files, and built where no memory is needed.

Planning a run needs shapes only. A network built on torch's meta device is diffusers' own code with tensors that hold
no data, so what it would allocate can be counted on any machine.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import WanTransformer3DModel
from peft import LoraConfig
from torch import nn
from torch.utils.checkpoint import checkpoint

from avd.config import AdaptersRecipe
from avd.models.wan import Settings, WanVelocity, locate, read_settings
from avd.types import UserError

_TEXT_TOKENS = 512
"""The longest prompt of a Wan model; its tokenizer may allow less."""


@dataclass(frozen=True)
class Skeleton:
    """Sizes of a model: its transformer's config, one clip's latents (C, F, H, W), and tokens of a prompt."""

    config: Mapping[str, Any]
    latent_CFHW: tuple[int, int, int, int]
    text_tokens: int

    @property
    def width(self) -> int:
        return self.config["num_attention_heads"] * self.config["attention_head_dim"]

    @property
    def layers(self) -> int:
        return self.config["num_layers"]

    def frames(self, stride: int = 1) -> int:
        """Latent frames of every `stride`-th."""
        return (self.latent_CFHW[1] - 1) // stride + 1

    def tokens(self, stride: int = 1) -> int:
        """Tokens of a clip of which every `stride`-th latent frame is kept."""
        time, high, wide = self.config["patch_size"]
        return (self.frames(stride) // time) * (self.latent_CFHW[2] // high) * (self.latent_CFHW[3] // wide)

    def build(
        self, layers: int, *, dtype: torch.dtype, adapters: AdaptersRecipe | None = None, checkpointing: str = "none"
    ) -> WanVelocity:
        """The network with `layers` blocks on the meta device, all of it trained or, with `adapters`, only these.

        Parameters are of `dtype`; buffers keep their precision, as they do in training. Raises UserError for adapters
        of layers that are not there.
        """
        with torch.device("meta"):
            transformer = WanTransformer3DModel.from_config({**self.config, "num_layers": layers})
            if adapters is not None:
                transformer.requires_grad_(False)
                _add_adapter(transformer, adapters)
        for parameter in transformer.parameters():
            parameter.data = parameter.data.to(dtype)
        if checkpointing != "none":
            chosen = set(transformer.blocks if checkpointing == "full" else transformer.blocks[::2])
            transformer.enable_gradient_checkpointing(
                lambda block, *args: checkpoint(block, *args, use_reentrant=False) if block in chosen else block(*args)
            )
        return WanVelocity(transformer)


def _add_adapter(transformer: WanTransformer3DModel, adapters: AdaptersRecipe) -> None:
    linear = [name for name, module in transformer.named_modules() if isinstance(module, nn.Linear)]
    for target in adapters.targets:
        if not any(f".{name}".endswith(f".{target}") for name in linear):
            raise UserError(f"adapters.targets names {target!r}, and the model has no such layer: see docs/recipes.md")
    targets = list(adapters.targets)
    transformer.add_adapter(LoraConfig(r=adapters.rank, lora_alpha=adapters.alpha, target_modules=targets))


_WAN21 = {
    "patch_size": (1, 2, 2),
    "attention_head_dim": 128,
    "in_channels": 16,
    "out_channels": 16,
    "text_dim": 4096,
    "freq_dim": 256,
    "cross_attn_norm": True,
    "qk_norm": "rms_norm_across_heads",
}
_HUB = {
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers": {**_WAN21, "num_attention_heads": 12, "num_layers": 30, "ffn_dim": 8960},
    "Wan-AI/Wan2.1-T2V-14B-Diffusers": {**_WAN21, "num_attention_heads": 40, "num_layers": 40, "ffn_dim": 13824},
}
_WAN21_VAE = {"z_dim": 16, "scale_factor_temporal": 4, "scale_factor_spatial": 8}


def read_skeleton(name: str) -> Skeleton:
    """The sizes of a shipped model, a diffusers folder or a Wan2.1 hub id; only config files are read, none fetched.

    Raises UserError if there is no such model, its sizes are not known here, or it is not a Wan text-to-video model.
    """
    if name in _HUB and not Path(name).is_dir():
        return _skeleton(_HUB[name], _WAN21_VAE, Settings(), _TEXT_TOKENS)
    folder = Path(locate(name))
    if not folder.is_dir():
        raise UserError(f"the sizes of {name} are not known here: name its folder, or one of {', '.join(_HUB)}")
    try:
        config = _read(folder / "transformer" / "config.json")
        vae = {**_WAN21_VAE, **_read(folder / "vae" / "config.json")}
        limit = _read(folder / "tokenizer" / "tokenizer_config.json").get("model_max_length", _TEXT_TOKENS)
        if config["_class_name"] != "WanTransformer3DModel" or config.get("image_dim") is not None:
            raise ValueError(f"its transformer is a {config['_class_name']}")
        return _skeleton(config, vae, read_settings(folder), min(limit, _TEXT_TOKENS))
    except UserError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{name} cannot be read as a Wan text-to-video model: {reason}") from error


def _skeleton(config: Mapping[str, Any], vae: Mapping[str, Any], clip: Settings, text_tokens: int) -> Skeleton:
    time, space = vae["scale_factor_temporal"], vae["scale_factor_spatial"]
    latent = (vae["z_dim"], (clip.frames - 1) // time + 1, clip.height // space, clip.width // space)
    return Skeleton(config, latent, text_tokens)


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))
