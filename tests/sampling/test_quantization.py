"""Weights of 8 bits: which layers, in how many bytes, and on which GPUs they are refused."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from torch import nn

from avd.sampling.quantization import check_quantization, quantize
from avd.types import UserError
from helpers.tiny import tiny_model

GPU = torch.device("cuda", 0)


@pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="needs torchao")
def test_only_the_linear_layers_of_blocks_change() -> None:
    network = tiny_model().velocity()
    inside = {module for block in network.blocks for module in block.modules() if isinstance(module, nn.Linear)}
    added = nn.Linear(24, 24)
    network.blocks[0].add_module("lora_A", added)
    quantize(network, "int8", torch.device("cpu"))
    for module in network.modules():
        if isinstance(module, nn.Linear):
            assert (type(module.weight.data) is not torch.Tensor) == (module in inside)
            if module in inside:
                assert module.weight.qdata.dtype == torch.int8


@pytest.mark.parametrize(
    ("capability", "weights", "refused"),
    [((8, 6), "float8", True), ((8, 9), "float8", False), ((7, 5), "int8", True), ((8, 6), "int8", False)],
)
def test_a_gpu_must_multiply_such_weights(
    capability: tuple[int, int], weights: str, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a card")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    if not refused:
        check_quantization(weights, GPU)  # type: ignore[arg-type]
        return
    with pytest.raises(UserError, match=f"{weights} weights need a GPU of compute capability .* and a card has"):
        check_quantization(weights, GPU)  # type: ignore[arg-type]
