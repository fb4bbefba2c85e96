"""The configs of a Wan folder's parts, read and judged before anything is built from them.

A config is a file like any other: sizes in it may be what no network can have, and a network of 60,000 blocks takes
minutes to build even without memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from avd.models.folders import ModelSource, read_object
from avd.models.settings import Settings, is_count, is_number, read_settings
from avd.models.wan.known import KNOWN, TEXT_TOKENS, UMT5_XXL, WAN21_T2V, WAN22_TI2V
from avd.types import UserError

_Range = tuple[int, int]

_TRANSFORMER: Mapping[str, _Range] = {
    "num_layers": (1, 1000),
    "num_attention_heads": (1, 1024),
    "attention_head_dim": (6, 4096),
    "in_channels": (1, 4096),
    "out_channels": (1, 4096),
    "text_dim": (1, 2**16),
    "freq_dim": (2, 2**16),
    "ffn_dim": (1, 2**20),
    "rope_max_seq_len": (1, 2**17),
}
_VAE: Mapping[str, _Range] = {
    "base_dim": (1, 4096),
    "z_dim": (1, 4096),
    "num_res_blocks": (1, 64),
    "in_channels": (1, 4096),
    "out_channels": (1, 4096),
    "scale_factor_temporal": (1, 256),
    "scale_factor_spatial": (1, 256),
}
_TEXT_ENCODER: Mapping[str, _Range] = {
    "vocab_size": (1, 2**24),
    "d_model": (1, 2**16),
    "d_kv": (1, 2**14),
    "d_ff": (1, 2**20),
    "num_layers": (1, 1000),
    "num_heads": (1, 1024),
}


def read_transformer(folder: Path, part: str = "transformer") -> dict[str, Any]:
    """`transformer/config.json`, the class's defaults filled in. Raises OSError, or ValueError for what cannot be.

    `part` may be `transformer_2`, the other expert's.
    """
    config = _read(folder / part, "WanTransformer3DModel", _TRANSFORMER, KNOWN["wan2.1-14b"].transformer)
    if config.get("image_dim") is not None:
        raise ValueError("its transformer needs an image: name a text-to-video model")
    patch = config["patch_size"]
    if not isinstance(patch, list | tuple) or len(patch) != 3 or not all(is_count(side, 1, 64) for side in patch):
        raise ValueError(f"transformer: patch_size is {patch!r}, not three whole numbers from 1 to 64")
    if config["attention_head_dim"] % 2:  # rotary positions turn pairs
        raise ValueError(f"transformer: attention_head_dim is {config['attention_head_dim']}, an odd number")
    return config


def read_vae(folder: Path) -> dict[str, Any]:
    """`vae/config.json`, likewise."""
    defaults = {"in_channels": 3, "out_channels": 3, **KNOWN["wan2.1-1.3b"].vae}
    config = _read(folder / "vae", "AutoencoderKLWan", _VAE, defaults)
    levels, halved = config["dim_mult"], config["temperal_downsample"]
    if not isinstance(levels, list) or not 1 <= len(levels) <= 8 or not all(is_count(n, 1, 64) for n in levels):
        raise ValueError(f"vae: dim_mult is {levels!r}, not 1 to 8 whole numbers from 1 to 64")
    if not isinstance(halved, list) or len(halved) != len(levels) - 1 or not all(isinstance(x, bool) for x in halved):
        raise ValueError(f"vae: temperal_downsample is {halved!r}, not {len(levels) - 1} of true and false")
    for key in ("patch_size", "decoder_base_dim"):
        if config.get(key) is not None and not is_count(config[key], 1, 4096):
            raise ValueError(f"vae: {key} is {config[key]!r}, not a whole number from 1 to 4,096")
    for key in ("latents_mean", "latents_std"):
        values = config.get(key)
        if values is None and config["z_dim"] == KNOWN["wan2.1-1.3b"].vae["z_dim"]:
            continue  # the class's own
        if not isinstance(values, list) or len(values) != config["z_dim"] or not all(map(is_number, values)):
            raise ValueError(f"vae: {key} is not a list of {config['z_dim']} numbers, one for each channel")
        if key == "latents_std" and min(values) <= 0:
            raise ValueError(f"vae: latents_std holds {min(values)}: it must be above 0")
    return config


def read_text_encoder(folder: Path) -> dict[str, Any]:
    """`text_encoder/config.json`, likewise."""
    return _read(folder / "text_encoder", None, _TEXT_ENCODER, UMT5_XXL)


def read_text_tokens(folder: Path) -> int:
    """The longest prompt: the tokenizer's own limit, or the family's. Raises as the others."""
    path = folder / "tokenizer" / "tokenizer_config.json"
    limit = read_object(path).get("model_max_length", TEXT_TOKENS) if path.exists() else TEXT_TOKENS
    if not is_number(limit) or limit < 1:
        raise ValueError(f"tokenizer: model_max_length is {limit!r}, not a number of tokens")
    return min(int(limit), TEXT_TOKENS)


def check_parts(
    source: ModelSource,
    transformer: Mapping[str, Any],
    vae: Mapping[str, Any],
    text_encoder: Mapping[str, Any] | None,
) -> None:
    """Raise ValueError unless the parts fit each other, by their configs, `model_index.json` and `avd.json`."""
    second = source.index.get("transformer_2") not in (None, [None, None])
    settings = read_settings(source.settings_folder)
    if second != (settings is not None and settings.high_stages > 0):
        if second:
            raise ValueError("it has two transformers, one for each range of noise levels: name a model of one")
        raise ValueError("its avd.json is that of two experts, and it has one transformer: write the folder again")
    if second and _sizes(read_transformer(source.folder, "transformer_2")) != _sizes(transformer):
        raise ValueError("its transformer_2 has other sizes than its transformer: write the folder again")
    if transformer["in_channels"] != vae["z_dim"]:
        found = f"takes {transformer['in_channels']} channels, and its VAE makes {vae['z_dim']}"
        raise ValueError(f"its transformer {found}: name a text-to-video model")
    if text_encoder is not None and transformer["text_dim"] != text_encoder["d_model"]:
        found = f"takes prompts of width {transformer['text_dim']}, and its text encoder makes"
        raise ValueError(f"its transformer {found} {text_encoder['d_model']}")


def _sizes(transformer: Mapping[str, Any]) -> dict[str, Any]:
    return {key: transformer[key] for key in (*_TRANSFORMER, "patch_size")}


def latent_shape(vae: Mapping[str, Any], frames: int, height: int, width: int) -> tuple[int, int, int, int]:
    """(C, F', H', W') of a clip, from a VAE's config."""
    time, space = vae["scale_factor_temporal"], vae["scale_factor_spatial"]
    return vae["z_dim"], (frames - 1) // time + 1, height // space, width // space


def check_clip(transformer: Mapping[str, Any], vae: Mapping[str, Any], frames: int, height: int, width: int) -> None:
    """Raise UserError unless a model of these configs can encode and denoise clips of this size."""
    time, side = vae["scale_factor_temporal"], vae["scale_factor_spatial"] * transformer["patch_size"][1]
    if frames < 1 or (frames - 1) % time or min(height, width) < 1 or height % side or width % side:
        raise UserError(
            f"clips of {frames} frames of {height} x {width} do not fit the model: it takes {time} n + 1 frames, "
            f"and sides that are multiples of {side}"
        )


def settings_of(source: ModelSource, transformer: Mapping[str, Any], vae: Mapping[str, Any]) -> Settings:
    """The folder's own settings, or what its pipeline implies. Raises UserError for `avd.json` and for clips that the
    configs do not fit, ValueError for the scheduler's config."""
    settings = read_settings(source.settings_folder) or _implied(source)
    try:
        check_clip(transformer, vae, settings.frames, settings.height, settings.width)
    except UserError as error:
        raise UserError(f"{source.settings_folder}: {error}") from error
    return settings


def _implied(source: ModelSource) -> Settings:
    """Settings of a folder from elsewhere: solver and shift of its scheduler, clips and negative prompt of its family.

    A pipeline that expands timesteps is Wan2.2-TI2V's; others are taken for Wan2.1's.
    """
    path = source.folder / "scheduler" / "scheduler_config.json"
    scheduler = read_object(path) if path.exists() else {}
    settings = WAN22_TI2V if source.index.get("expand_timesteps") else WAN21_T2V
    unipc = scheduler.get("_class_name") == "UniPCMultistepScheduler"
    key = "flow_shift" if unipc else "shift"
    shift = scheduler[key] if unipc else scheduler.get(key, settings.shift)
    if not is_number(shift) or shift <= 0:
        raise ValueError(f"scheduler: {key} is {shift!r}, not a number above 0")
    return replace(settings, solver="unipc" if unipc else settings.solver, shift=shift)


def _read(
    folder: Path, class_name: str | None, ranges: Mapping[str, _Range], defaults: Mapping[str, Any]
) -> dict[str, Any]:
    own = read_object(folder / "config.json")
    if class_name is not None and own.get("_class_name") != class_name:
        raise ValueError(f"its {folder.name} is of class {own.get('_class_name')}, not {class_name}")
    config = {**defaults, **own}
    for key, (least, most) in ranges.items():
        if key in config and not is_count(config[key], least, most):
            raise ValueError(f"{folder.name}: {key} is {config[key]!r}, not a whole number from {least} to {most:,}")
    return config
