"""Which AdamW a recipe gets on which device."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from avd.config import OptimizerRecipe
from avd.engine.optimizers import make_optimizer

RECIPE = OptimizerRecipe(weight_decay=0.01)


@pytest.mark.parametrize(("device", "fused"), [("cuda", True), ("cpu", None)])
def test_the_kernel_is_fused_on_a_gpu_only(device: str, fused: bool | None) -> None:
    """On a CPU a fused kernel would round differently from the one that the published numbers were made with."""
    with FakeTensorMode():  # devices without the devices
        optimizer = make_optimizer([nn.Parameter(torch.empty(2, device=device))], RECIPE)
    assert optimizer.defaults["fused"] is fused
