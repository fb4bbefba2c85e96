"""A Wan transformer's LoRA on disk, in the form of diffusers' `WanPipeline`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel
from safetensors import SafetensorError
from torch import Tensor

from avd.models.adapters import attach_lora
from avd.models.lora import LoraMatrices, MergedWeights
from avd.models.streams import TensorStream
from avd.models.weights import Weights
from avd.types import UserError

_PREFIX = "transformer."
"""The start of the names in a LoRA's file that belong to the transformer."""


def save_adapter(folder: Path, weights: TensorStream) -> None:
    """Write what `models.adapters.adapter_stream` gives as a LoRA that `WanPipeline.load_lora_weights` reads."""
    WanPipeline.save_lora_weights(folder, transformer_lora_layers=dict(weights))


def read_adapter(folder: Path) -> dict[str, Tensor]:
    """What `save_adapter` wrote. Raises UserError if it is damaged."""
    with _explained(folder):
        weights = WanPipeline.lora_state_dict(str(folder), use_safetensors=True)
        return {name.removeprefix(_PREFIX): tensor for name, tensor in weights.items()}


def merged_with_saved(base: Weights, folder: Path) -> Weights:
    """A base with the LoRA in `folder` merged in float32 as it is read. Raises UserError if it does not fit."""
    adapter = read_adapter(folder)
    with _explained(folder):
        return MergedWeights(base, LoraMatrices.of(adapter))


def attach_saved(transformer: WanTransformer3DModel, folder: Path) -> None:
    """Have a plain transformer compute with the LoRA in `folder` beside it. Raises UserError if it does not fit."""
    adapter = read_adapter(folder)
    with _explained(folder):
        attach_lora(transformer, LoraMatrices.of(adapter))


def fused_weights(base: WanTransformer3DModel, folder: Path) -> dict[str, Tensor]:
    """The state dict of `base`, which is changed, after stock `WanPipeline.load_lora_weights` and `fuse_lora`."""
    pipeline = WanPipeline(
        tokenizer=None, text_encoder=None, vae=None, transformer=base, scheduler=FlowMatchEulerDiscreteScheduler()
    )
    with _explained(folder):
        pipeline.load_lora_weights(folder)
        pipeline.fuse_lora(components=["transformer"])
        pipeline.unload_lora_weights()
    return dict(base.state_dict())


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"the adapter {folder} does not fit its base: {reason}") from error
