"""AdamW, with moments of 32 bits or of 8, and factors on its learning rate."""

from __future__ import annotations

import math

import torch
from torch import nn

from avd.config import OptimizerRecipe
from avd.types import UserError


def make_optimizer(parameters: list[nn.Parameter], recipe: OptimizerRecipe) -> torch.optim.Optimizer:
    """AdamW as the recipe says; see `check_optimizer` for what it may lack.

    On a GPU all parameters are updated by one fused kernel, which makes no temporaries.
    """
    assert recipe.weight_decay is not None, "a full recipe fills it in"
    if recipe.bits == 32:
        fused = all(parameter.device.type == "cuda" for parameter in parameters)
        return torch.optim.AdamW(
            parameters,
            lr=recipe.learning_rate,
            betas=recipe.betas,
            weight_decay=recipe.weight_decay,
            fused=True if fused else None,
        )
    check_optimizer(recipe)
    from torchao.optim import AdamW8bit

    return AdamW8bit(parameters, lr=recipe.learning_rate, betas=recipe.betas, weight_decay=recipe.weight_decay)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        if isinstance(group["lr"], torch.Tensor):  # as torchao has it, so that no rate is compiled in
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def check_optimizer(recipe: OptimizerRecipe) -> None:
    """Raise UserError if the optimizer needs a package that is not there."""
    if recipe.bits == 8:
        try:
            import torchao.optim  # noqa: F401
        except ImportError:
            raise UserError("optimizer.bits is 8, which needs torchao: pip install 'avd[8bit]'") from None


def warm_cosine(n: int, warmup: int, updates: int) -> float:
    """Factor on the learning rate in update `n`, which counts from 0: linear from 0 over `warmup` updates, then half a
    cosine to 0 at `updates`."""
    if n < warmup:
        return (n + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (n - warmup) / max(updates - warmup, 1)))


def trapezoid(n: int, warmup: int, cooldown: float, updates: int) -> float:
    """The same: linear up over `warmup` updates, flat at 1, linear to 0 over the last `cooldown` share of `updates`."""
    falling = max(updates * cooldown, 1.0)
    return min(1.0, (n + 1) / max(warmup, 1), (updates - n) / falling)
