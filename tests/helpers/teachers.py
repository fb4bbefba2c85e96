"""Folders of teachers as they are published: true configs, cut in depth, with random weights.

Widths, heads, channels, whitening and compression are those of `avd.models.wan.known`. What is cut: the transformer to
2 layers, UMT5-XXL to 1 layer and a vocabulary of a few words, and prompts from 512 tokens to 32 unless asked otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import UMT5Config, UMT5EncoderModel

from avd.miniature import architecture as mini
from avd.models.wan.known import KNOWN, UMT5_XXL

LAYERS = 2
TOKENS = 32
UNLIMITED = int(1e30)
"""Tokens of UMT5's own tokenizer, which leaves the limit to whoever calls it."""
WORDS = ("a", "red", "ball", "drifts", "left", "and", "rests")


def publish(
    name: str,
    folder: Path,
    *,
    dtype: torch.dtype = torch.bfloat16,
    transformer: dict[str, Any] | None = None,
    vae: dict[str, Any] | None = None,
    text_encoder: dict[str, Any] | None = None,
    tokens: int = TOKENS,
) -> Path:
    """Write the known model `name` to `folder` through diffusers, as its makers did; with further cuts if given."""
    known = KNOWN[name]
    tokenizer = mini.build_tokenizer(WORDS)
    tokenizer.model_max_length = tokens
    text = {**UMT5_XXL, "num_layers": 1, "vocab_size": len(tokenizer), **(text_encoder or {})}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pipeline = WanPipeline(
            tokenizer=tokenizer,
            text_encoder=_random(lambda: UMT5EncoderModel(UMT5Config(**text)), dtype),
            vae=_random(lambda: AutoencoderKLWan(**{**known.vae, **(vae or {})}), dtype),
            transformer=_random(
                lambda: WanTransformer3DModel(**{**known.transformer, "num_layers": LAYERS, **(transformer or {})}),
                dtype,
            ),
            scheduler=UniPCMultistepScheduler(
                prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=known.settings.shift
            ),
            expand_timesteps=known.expand_timesteps,
        )
    pipeline.save_pretrained(folder)
    return folder


def _random(make: Callable[[], Any], dtype: torch.dtype) -> Any:
    """A network whose layers keep the size of what comes in, made in `dtype` and nowhere in a larger one."""
    with init_empty_weights(include_buffers=False):
        network = make()
    block = torch.empty(1 << 20).uniform_(-1.0, 1.0).to(dtype)
    for module in network.modules():
        for name, hollow in list(module.named_parameters(recurse=False)):
            if name == "bias":
                weight = torch.zeros(hollow.shape, dtype=dtype)
            elif hollow.ndim < 2 or name == "gamma":
                weight = torch.ones(hollow.shape, dtype=dtype)
            else:  # the same values from another place: to draw a billion takes its time
                weight = block.roll(int(torch.randint(len(block), ())))
                weight = weight.repeat(hollow.numel() // len(block) + 1)[: hollow.numel()].view(hollow.shape)
                weight = weight * (3.0 / hollow[0].numel()) ** 0.5
            setattr(module, name, nn.Parameter(weight))
    if isinstance(network, UMT5EncoderModel):
        network.tie_weights()
    return network


_ORIGINAL_NAMES = {
    "condition_embedder.time_embedder.linear_1": "time_embedding.0",
    "condition_embedder.time_embedder.linear_2": "time_embedding.2",
    "condition_embedder.text_embedder.linear_1": "text_embedding.0",
    "condition_embedder.text_embedder.linear_2": "text_embedding.2",
    "condition_embedder.time_proj": "time_projection.1",
    "attn1.to_out.0": "self_attn.o",
    "attn2.to_out.0": "cross_attn.o",
    "attn1.to_": "self_attn.",
    "attn2.to_": "cross_attn.",
    "attn1.": "self_attn.",
    "attn2.": "cross_attn.",
    "ffn.net.0.proj": "ffn.0",
    "ffn.net.2": "ffn.2",
    "norm2": "norm3",
    "proj_out": "head.head",
}


def original_name(name: str) -> str:
    """What a tensor of diffusers' Wan transformer is called in Wan's own files."""
    if name == "scale_shift_table":
        return "head.modulation"
    for ours, theirs in _ORIGINAL_NAMES.items():
        name = name.replace(ours, theirs)
    return name.replace("scale_shift_table", "modulation")


def write_original(folder: Path, file: Path, *, prefix: str = "") -> Path:
    """The transformer of a published folder as a single file in its original names; `prefix` is some tools' own."""
    weights: dict[str, torch.Tensor] = {}
    for shard in (folder / "transformer").glob("*.safetensors"):
        weights |= load_file(shard)
    save_file({prefix + original_name(name): tensor for name, tensor in weights.items()}, file)
    return file
