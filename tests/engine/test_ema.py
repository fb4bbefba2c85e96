"""The moving average against its closed form."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from avd.engine.ema import EMA


def weights(value: float) -> nn.Linear:
    module = nn.Linear(2, 1)
    nn.init.constant_(module.weight, value)
    nn.init.constant_(module.bias, value)
    return module


@pytest.mark.parametrize("decay", [0.0, 0.3, 0.999])
def test_the_warm_up_follows_its_formula(decay: float) -> None:
    ema, expected = EMA(weights(5.0), decay), 5.0
    for n in range(20):
        d = min(decay, (1 + n) / (10 + n))
        expected = d * expected + (1 - d) * n
        ema.update(weights(float(n)), n)
    assert ema.module.weight.flatten().tolist() == pytest.approx([expected] * 2, rel=1e-5)
    assert ema.module.bias.item() == pytest.approx(expected, rel=1e-5)


def test_during_the_warm_up_the_first_weights_fade_as_a_product() -> None:
    """After N updates with weights 0, prod (1 + n) / (10 + n) = 9! N! / (N + 9)! of the first is left."""
    ema = EMA(weights(1.0), 0.999)
    for n in range(4):
        ema.update(weights(0.0), n)
    assert ema.module.bias.item() == pytest.approx(1 / 715, rel=1e-5)  # 4! 9! / 13!


def test_after_the_warm_up_the_decay_is_the_given_one() -> None:
    ema = EMA(weights(1.0), 0.9)
    ema.update(weights(0.0), 1000)
    assert ema.module.bias.item() == pytest.approx(0.9)


def test_the_average_is_apart_from_the_module_and_takes_no_gradient() -> None:
    module = weights(1.0).train()
    ema = EMA(module, 0.9)
    nn.init.zeros_(module.weight)
    assert ema.module.weight.mean() == 1.0
    assert not ema.module.training and not any(p.requires_grad for p in ema.module.parameters())
    assert module.training and all(p.requires_grad for p in module.parameters())


def test_two_averages_of_the_same_weights_are_the_same_bits() -> None:
    first, second = EMA(weights(0.3), 0.999), EMA(weights(0.3), 0.999)
    for n in range(5):
        for ema in (first, second):
            ema.update(weights(torch.pi * n), n)
    assert torch.equal(first.module.weight, second.module.weight)


@pytest.mark.parametrize("decay", [1.0, -0.1])
def test_a_decay_that_never_learns_is_refused(decay: float) -> None:
    with pytest.raises(ValueError, match="decay"):
        EMA(weights(0.0), decay)
