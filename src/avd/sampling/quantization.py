"""EightBit of 8 bits for sampling, by torchao: quantised when they are loaded, never shipped.

Inputs are quantised too, per row, as they come. Only the linear layers of the repeated blocks change, which hold nearly
all weights; embeddings, norms, modulations and adapters stay as they are.

    float8   e4m3, a scale per row; needs a GPU of compute capability 8.9
    int8     a scale per output channel; on a GPU of capability 8.0, or a CPU
"""

from __future__ import annotations

import importlib.util
from typing import Literal

import torch
from torch import nn

from avd.models.backbone import Backbone
from avd.types import UserError

EightBit = Literal["float8", "int8"]

_CAPABILITIES: dict[EightBit, tuple[int, int]] = {"float8": (8, 9), "int8": (8, 0)}


def check_quantization(weights: EightBit, device: torch.device) -> None:
    """Raise UserError where torchao is missing, or the device cannot multiply such weights."""
    if device.type == "cuda":
        found, needed = torch.cuda.get_device_capability(device), _CAPABILITIES[weights]
        if found < needed:
            name = torch.cuda.get_device_name(device)
            raise UserError(
                f"{weights} weights need a GPU of compute capability {needed[0]}.{needed[1]}, and {name} has "
                f"{found[0]}.{found[1]}: choose another, or let weights wait in the host's memory (--offload blocks)"
            )
    elif weights == "float8":
        raise UserError(f"{weights} weights need a GPU, and the model is on the {device.type}: choose --int8, or none")
    if importlib.util.find_spec("torchao") is None:
        raise UserError(f"{weights} weights need the package torchao: pip install 'avd[8bit]'")


def quantize(network: Backbone, weights: EightBit, device: torch.device) -> None:
    """Quantise a network's blocks in place, layer by layer on `device`, where they stay; see `check_quantization`.

    No more than one layer is there in its own precision at a time.
    """
    from torchao.quantization import (
        Float8DynamicActivationFloat8WeightConfig,
        Int8DynamicActivationInt8WeightConfig,
        PerRow,
        quantize_,
    )

    int8 = weights == "int8"
    config = Int8DynamicActivationInt8WeightConfig() if int8 else Float8DynamicActivationFloat8WeightConfig(PerRow())
    for block in network.blocks:
        quantize_(block, config, _is_own_layer, device=device)


def _is_own_layer(module: nn.Module, name: str) -> bool:
    """Whether it is a linear layer that an adapter has not added."""
    return isinstance(module, nn.Linear) and "lora_" not in name
