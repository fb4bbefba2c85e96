"""Adapters are switched without looking through the network again."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from avd.models.adapters import AdapterVelocity, add_adapters
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
