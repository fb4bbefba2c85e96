"""Operations by formula against torch's own counter, on real forwards and backwards."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from avd.config import AdaptersRecipe
from avd.models.wan.skeleton import Skeleton, read_skeleton
from avd.planning.flops import flops_of, linear_layers
from helpers.planning_sizes import NEED_NO_GRADIENT, SKELETON

ADAPTERS = AdaptersRecipe(rank=3, alpha=3.0)


def counted(
    skeleton: Skeleton, *, stride: int = 1, backward: bool = False, adapters: AdaptersRecipe | None = None
) -> int:
    network = skeleton.build(skeleton.layers, dtype=torch.float32, adapters=adapters)
    channels, _, height, width = skeleton.latent_CFHW
    noisy = torch.empty(1, channels, skeleton.frames(stride), height, width, device="meta")
    prompt = torch.empty(1, skeleton.text_tokens, skeleton.config["text_dim"], device="meta")
    # Attention is counted as the products it consists of, whatever fuses them.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        velocity = network(noisy, torch.empty(1, device="meta"), prompt, frame_stride=stride)
        if backward:
            velocity.sum().backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("adapters", [None, ADAPTERS])
@pytest.mark.parametrize(
    "change",
    [{}, {"num_layers": 1}, {"ffn_dim": 33}, {"num_attention_heads": 3}, {"text_dim": 5}, {"patch_size": (1, 1, 1)}],
    ids=str,
)
def test_a_forward(change: dict[str, object], adapters: AdaptersRecipe | None, stride: int) -> None:
    skeleton = replace(SKELETON, config={**SKELETON.config, **change})
    assert flops_of(skeleton, stride, adapters).forward == counted(skeleton, stride=stride, adapters=adapters)


def test_a_backward_takes_every_product_twice() -> None:
    spared = sum(layer.flops for layer in linear_layers(SKELETON) if layer.name in NEED_NO_GRADIENT)
    flops = flops_of(SKELETON)
    assert flops.forward + flops.backward - spared == counted(SKELETON, backward=True)


def test_a_backward_through_frozen_weights_takes_them_once() -> None:
    skeleton = replace(SKELETON, config={**SKELETON.config, "num_layers": 24})
    flops = flops_of(skeleton, adapters=ADAPTERS)
    found = counted(skeleton, backward=True, adapters=ADAPTERS)
    # Nothing flows into what comes before the first adapter, nor into the text: a few hundredths here.
    assert 0.93 * (flops.forward + flops.backward) < found < flops.forward + flops.backward


def test_wan_at_its_own_size() -> None:
    skeleton = read_skeleton("Wan-AI/Wan2.1-T2V-1.3B-Diffusers")
    assert (skeleton.tokens(), skeleton.tokens(2)) == (32760, 17160)
    assert flops_of(skeleton).forward == counted(skeleton)
