"""Adapters are switched without looking through the network again."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from avd.models.adapters import AdapterVelocity, add_adapters, attach_lora
from avd.models.lora import LoraMatrices
from avd.models.wan.network import WanVelocity
from avd.types import Conditions
from helpers.tiny import LATENT_SHAPE, tiny_model

X, SIGMA, PROMPT = torch.ones(1, *LATENT_SHAPE), torch.tensor([0.5]), Conditions({"embedding": torch.ones(1, 7, 64)})


def adapted(*names: str) -> WanVelocity:
    network = WanVelocity(tiny_model().transformer)
    network.compute_dtype = torch.float32  # else diffusers looks for the weights' own
    torch.manual_seed(0)
    add_adapters(network.transformer, names, rank=2, alpha=2, targets=("to_q", "ffn.net.2"))
    for name, parameter in network.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    return network


def test_neither_a_call_nor_a_recomputed_block_walks_the_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    network = adapted("student", "fake_score")
    network.recompute("full")
    student, teacher = AdapterVelocity(network, "student"), AdapterVelocity(network, None)
    before = student(X, SIGMA, PROMPT).detach()  # the first call may
    walks: list[nn.Module] = []
    walk = nn.Module.named_modules
    monkeypatch.setattr(
        nn.Module, "named_modules", lambda module, *a, **k: (walks.append(module), walk(module, *a, **k))[1]
    )
    velocity = student(X, SIGMA, PROMPT)
    teacher(X, SIGMA, PROMPT)
    velocity.square().mean().backward()
    assert network.transformer not in walks
    monkeypatch.undo()
    assert torch.equal(velocity.detach(), before)
    assert all(parameter.grad is not None for parameter in student.parameters())


def test_layers_that_are_adapted_later_are_switched_too() -> None:
    """What was found before, that there are none, does not stay."""
    network = WanVelocity(tiny_model().transformer)
    base = AdapterVelocity(network, None)(X, SIGMA, PROMPT)
    add_adapters(network.transformer, ("late",), rank=2, alpha=2, targets=("to_q",))
    for name, parameter in network.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    assert not torch.equal(AdapterVelocity(network, "late")(X, SIGMA, PROMPT), base)
    assert torch.equal(AdapterVelocity(network, None)(X, SIGMA, PROMPT), base)


def lora(**ranks: int) -> LoraMatrices:
    """Changes of layers of the first block, with their ranks; a dot in a layer's name is written as __."""
    generator = torch.Generator().manual_seed(0)
    tensors: dict[str, Tensor] = {}
    for name, rank in ranks.items():
        layer = f"blocks.0.{name.replace('__', '.')}"
        tensors[f"{layer}.lora_A.weight"] = torch.randn(rank, 24, generator=generator)
        tensors[f"{layer}.lora_B.weight"] = torch.randn(24, rank, generator=generator)
    return LoraMatrices.of(tensors)


def test_a_lora_beside_a_coarse_base_stays_in_float32() -> None:
    """Layers of different ranks, one of which has a name that ends like another's."""
    change = lora(attn1__to_q=2, attn2__to_q=3)
    plain, network = (WanVelocity(tiny_model().transformer) for _ in range(2))
    for layer in change.ranks:
        down, up = change.read(layer)
        plain.transformer.get_submodule(layer).weight.data += up @ down
    attach_lora(network.transformer, change)
    with torch.no_grad():
        torch.testing.assert_close(network(X, SIGMA, PROMPT), plain(X, SIGMA, PROMPT))
    coarse = WanVelocity(tiny_model().transformer.bfloat16())
    attach_lora(coarse.transformer, change)
    matrices = {name: p for name, p in coarse.named_parameters() if "lora_" in name}
    assert len(matrices) == 4 and {p.dtype for p in matrices.values()} == {torch.float32}
    assert not any(p.requires_grad for p in coarse.parameters())
    with torch.no_grad():
        torch.testing.assert_close(coarse(X, SIGMA, PROMPT), plain(X, SIGMA, PROMPT), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("layer", ["ffn__net__2", "norm2", "attn3__to_q"])
def test_a_lora_that_does_not_fit_is_named(layer: str) -> None:
    """A layer of another width, one that is not linear, and one that there is not."""
    with pytest.raises(ValueError, match=f"it changes blocks.0.{layer.replace('__', '.')} by matrices"):
        attach_lora(tiny_model().transformer, lora(**{layer: 2}))
