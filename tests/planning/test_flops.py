"""Operations by formula against torch's own counter, on real forwards and backwards."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from avd.config import AdaptersRecipe
from avd.models.family import read_sizes
from avd.models.wan.sizes import WanSizes, make_sizes
from avd.planning.activations import build_hollow
from avd.planning.flops import flops_of
from avd.types import Conditions
from helpers.planning_sizes import NEED_NO_GRADIENT, SIZES

ADAPTERS = AdaptersRecipe(rank=3, alpha=3.0)


def counted(
    sizes: WanSizes,
    *,
    stride: int = 1,
    backward: bool = False,
    to_input: bool = False,
    adapters: AdaptersRecipe | None = None,
) -> int:
    network = build_hollow(sizes, torch.float32, adapters)
    channels, _, height, width = sizes.latent_CFHW
    noisy = torch.empty(1, channels, sizes.frames(stride), height, width, device="meta")
    noisy = noisy.requires_grad_(to_input) * 1  # the counter's hooks refuse leaves that a gradient is asked of
    prompts = {name: torch.empty(1, *shape, device="meta") for name, shape in sizes.conditions.items()}
    # Attention is counted as the products it consists of, whatever fuses them.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        velocity = network(noisy, torch.empty(1, device="meta"), Conditions(prompts), frame_stride=stride)
        if backward:
            velocity.sum().backward()
        if to_input:
            torch.autograd.grad(velocity.sum(), noisy)
    return counter.get_total_flops()


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("adapters", [None, ADAPTERS])
@pytest.mark.parametrize(
    "change",
    [{}, {"num_layers": 1}, {"ffn_dim": 33}, {"num_attention_heads": 3}, {"text_dim": 5}, {"patch_size": (1, 1, 1)}],
    ids=str,
)
def test_a_forward(change: dict[str, object], adapters: AdaptersRecipe | None, stride: int) -> None:
    sizes = make_sizes({**SIZES.config, **change}, SIZES.latent_CFHW, SIZES.text_tokens)
    assert flops_of(sizes, (stride, 1), adapters).forward == counted(sizes, stride=stride, adapters=adapters)


def test_a_backward_takes_every_product_twice() -> None:
    spared = sum(layer.flops for layer in SIZES.linear_layers() if layer.name in NEED_NO_GRADIENT)
    flops = flops_of(SIZES)
    assert flops.forward + flops.backward - spared == counted(SIZES, backward=True)


def test_a_backward_through_frozen_weights_takes_them_once() -> None:
    sizes = replace(SIZES, layers=24)
    flops = flops_of(sizes, adapters=ADAPTERS)
    found = counted(sizes, backward=True, adapters=ADAPTERS)
    # Nothing flows into what comes before the first adapter, nor into the text: a few hundredths here.
    assert 0.93 * (flops.forward + flops.backward) < found < flops.forward + flops.backward


def test_a_backward_to_the_input_leaves_out_every_product_with_a_weights_gradient() -> None:
    """And what does not lead there, which a text shorter than a clip's tokens makes little of: here it is known."""
    text = ("condition_embedder", "attn2.to_k", "attn2.to_v")
    aside = sum(layer.flops for layer in SIZES.linear_layers() if layer.name.startswith(text))
    aside += 4 * SIZES.tokens() * SIZES.text_tokens * SIZES.width * SIZES.layers  # gradients of the text's keys, values
    flops = flops_of(SIZES)
    assert flops.forward + flops.input_backward - aside == counted(SIZES, to_input=True)


def test_wan_at_its_own_size() -> None:
    sizes = read_sizes("Wan-AI/Wan2.1-T2V-1.3B-Diffusers")
    assert (sizes.tokens(), sizes.tokens(2)) == (32760, 17160)
    assert flops_of(sizes).forward == counted(sizes)
