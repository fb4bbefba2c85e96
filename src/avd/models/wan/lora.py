"""A Wan transformer's LoRA on disk, in the form of diffusers' `WanPipeline`."""

from __future__ import annotations

from pathlib import Path

from diffusers import WanPipeline, WanTransformer3DModel
from safetensors import SafetensorError
from torch import Tensor

from avd.types import UserError


def save_adapter(folder: Path, weights: dict[str, Tensor]) -> None:
    """Write what `models.adapters.adapter_weights` gave as a LoRA that `WanPipeline.load_lora_weights` reads."""
    WanPipeline.save_lora_weights(folder, transformer_lora_layers=weights)


def merge_saved(transformer: WanTransformer3DModel, folder: Path) -> None:
    """Merge the LoRA in `folder` into a plain transformer, in place. Raises UserError if it does not fit."""
    try:
        transformer.load_lora_adapter(str(folder), prefix="transformer", use_safetensors=True)
        transformer.fuse_lora()
        transformer.unload_lora()
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"the adapter {folder} does not fit its base: {reason}") from error
