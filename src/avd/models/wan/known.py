"""Configs of the models that recipes name, as published in diffusers' form: what a network is before there are weights.

Keys that are not given are the classes' own defaults in diffusers and transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from avd.models.settings import Settings

Config = Mapping[str, Any]

TEXT_TOKENS = 512
"""The longest prompt of a Wan model; its tokenizer may allow less."""
NEGATIVE_PROMPT = (
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量"
    "，低质量，JPEG压缩残留，丑陋的，残缺的，多余的手指，画得不好的手部，画得不好的脸部，畸"
    "形的，毁容的，形态畸形的肢体，手指融合，静止不动的画面，杂乱的背景，三条腿，背景人很多，倒"
    "着走"
)
"""What Wan's own code guides away from: gaudy colours, overexposure, stillness, bad quality, bad anatomy."""
WAN21_T2V = Settings(negative_prompt=NEGATIVE_PROMPT)
"""Clips of Wan2.1-T2V, which the defaults of `Settings` are."""
WAN22_TI2V = replace(WAN21_T2V, frames=121, height=704, width=1280, fps=24)
"""Clips of Wan2.2-TI2V-5B."""

UMT5_XXL: Config = {
    "vocab_size": 256384,
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
    "feed_forward_proj": "gated-gelu",
}
"""Config of transformers' `UMT5EncoderModel`, the text encoder of all Wan models, with prompts of up to 512 tokens."""

# whose latents' mean and standard deviation are the defaults of the class
_WAN21_VAE: Config = {
    "base_dim": 96,
    "z_dim": 16,
    "dim_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
    "temperal_downsample": [False, True, True],
    "scale_factor_temporal": 4,
    "scale_factor_spatial": 8,
}

# fmt: off
_WAN22_MEAN = [
    -0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557,
    -0.1382, 0.0542, 0.2813, 0.0891, 0.1570, -0.0098, 0.0375, -0.1825,
    -0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502,
    -0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.1230,
    -0.0313, -0.1649, 0.0117, 0.0723, -0.2839, -0.2083, -0.0520, 0.3748,
    0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667,
]
_WAN22_STD = [
    0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.4990, 0.4818, 0.5013,
    0.8158, 1.0344, 0.5894, 1.0901, 0.6885, 0.6165, 0.8454, 0.4978,
    0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659,
    0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093,
    0.5709, 0.6065, 0.6415, 0.4944, 0.5726, 1.2042, 0.5458, 1.6887,
    0.3971, 1.0600, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744,
]
# fmt: on

_WAN22_VAE: Config = {
    "base_dim": 160,
    "decoder_base_dim": 256,
    "z_dim": 48,
    "dim_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
    "temperal_downsample": [False, True, True],
    "is_residual": True,
    "in_channels": 12,
    "out_channels": 12,
    "patch_size": 2,
    "scale_factor_temporal": 4,
    "scale_factor_spatial": 16,
    "latents_mean": _WAN22_MEAN,
    "latents_std": _WAN22_STD,
}


def _transformer(heads: int, ffn_dim: int, layers: int, channels: int) -> Config:
    return {
        "patch_size": (1, 2, 2),
        "num_attention_heads": heads,
        "attention_head_dim": 128,
        "in_channels": channels,
        "out_channels": channels,
        "text_dim": 4096,
        "freq_dim": 256,
        "ffn_dim": ffn_dim,
        "num_layers": layers,
    }


@dataclass(frozen=True)
class KnownModel:
    """A published model. `expand_timesteps` is its pipeline's: of the family of Wan2.2-TI2V."""

    hub_id: str
    transformer: Config
    vae: Config
    settings: Settings
    expand_timesteps: bool = False


_AS_SHIPPED = replace(WAN21_T2V, solver="unipc", shift=3.0)

KNOWN: Mapping[str, KnownModel] = {
    "wan2.1-1.3b": KnownModel(
        "Wan-AI/Wan2.1-T2V-1.3B-Diffusers", _transformer(12, 8960, 30, 16), _WAN21_VAE, _AS_SHIPPED
    ),
    "wan2.1-14b": KnownModel(
        "Wan-AI/Wan2.1-T2V-14B-Diffusers", _transformer(40, 13824, 40, 16), _WAN21_VAE, _AS_SHIPPED
    ),
    "wan2.2-ti2v-5b": KnownModel(
        "Wan-AI/Wan2.2-TI2V-5B-Diffusers",
        _transformer(24, 14336, 30, 48),
        _WAN22_VAE,
        replace(WAN22_TI2V, solver="unipc"),
        expand_timesteps=True,
    ),
}
