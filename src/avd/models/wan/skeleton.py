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

from avd.config import AdaptersRecipe
from avd.models.adapters import add_adapters
from avd.models.settings import Settings, read_settings
from avd.models.wan.blocks import Recomputed, recompute_blocks
from avd.models.wan.files import INDEX_FILE, locate
from avd.models.wan.known import KNOWN
from avd.models.wan.model import WanVelocity
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
        self,
        layers: int,
        *,
        dtype: torch.dtype,
        adapters: AdaptersRecipe | None = None,
        checkpointing: Recomputed = "none",
    ) -> WanVelocity:
        """The network with `layers` blocks on the meta device, all of it trained or, with `adapters`, only these.

        Parameters are of `dtype`; buffers keep their precision, as they do in training. Raises UserError for adapters
        of layers that are not there.
        """
        with torch.device("meta"):
            transformer = WanTransformer3DModel.from_config({**self.config, "num_layers": layers})
            if adapters is not None:
                rank, alpha, targets = adapters.rank, adapters.alpha, adapters.targets
                add_adapters(transformer, ("student",), rank=rank, alpha=alpha, targets=targets)
        for parameter in transformer.parameters():
            parameter.data = parameter.data.to(dtype)
        recompute_blocks(transformer, checkpointing)
        return WanVelocity(transformer)


def read_skeleton(name: str) -> Skeleton:
    """The sizes of a shipped model, a diffusers folder or a Wan2.1 hub id; only config files are read, none fetched.

    Raises UserError if there is no such model, its sizes are not known here, or it is not a Wan text-to-video model.
    """
    known = next((model for model in KNOWN.values() if model.hub_id == name and not Path(name).is_dir()), None)
    if known is not None:
        return _skeleton(known.transformer, known.vae, known.settings, _TEXT_TOKENS)
    folder = locate(name, fetch=False)
    if folder is None:
        hub = ", ".join(model.hub_id for model in KNOWN.values())
        raise UserError(f"the sizes of {name} are not known here: name its folder, or one of {hub}")
    try:
        config = _read(folder / "transformer" / "config.json")
        vae = {**KNOWN["wan2.1-1.3b"].vae, **_read(folder / "vae" / "config.json")}
        limit = _read(folder / "tokenizer" / "tokenizer_config.json").get("model_max_length", _TEXT_TOKENS)
        if config["_class_name"] != "WanTransformer3DModel" or config.get("image_dim") is not None:
            raise ValueError(f"its transformer is a {config['_class_name']}")
        settings = read_settings(folder, _read(folder / INDEX_FILE))
        return _skeleton(config, vae, settings, min(limit, _TEXT_TOKENS))
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
