"""AdamW, with moments of 32 bits or of 8."""

from __future__ import annotations

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
