"""Muon: momentum whose matrices are made orthogonal before each step (kellerjordan.github.io/posts/muon).

    M  <- beta M + (1 - beta) G                    momentum
    U   = NewtonSchulz((1 - beta) G + beta M)      the nearest matrix with singular values near 1 (Nesterov)
    W  <- (1 - eta lambda) W - 0.2 eta sqrt(max(rows, columns)) U

The factor gives the step the size of AdamW's (arXiv 2502.16982, Eq. 4). The five iterations are those of
`torch.optim.Muon`, which runs them in bfloat16 and one matrix at a time: a hundred times slower on a CPU. Here they are
in the weights' own precision, and matrices of one shape go through them together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5


def orthogonalized(matrices: Tensor) -> Tensor:
    """Matrices (..., rows, columns) with the same singular vectors and singular values between about 0.7 and 1.2.

    A matrix of zeros stays one.
    """
    a, b, c = _COEFFICIENTS
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-7)
    for _ in range(_ITERATIONS):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """For matrices of plain tensors that every rank has in full. `lr` is of AdamW's scale.

    Raises ValueError for a parameter that is not a matrix.
    """

    def __init__(
        self, params: Iterable[nn.Parameter], lr: float, *, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        wrong = [tuple(p.shape) for group in self.param_groups for p in group["params"] if p.ndim != 2]
        if wrong:
            raise ValueError(f"Muon trains matrices, and one parameter has the shape {wrong[0]}")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of all parameters that have a gradient."""
        loss = None if closure is None else closure()
        for group in self.param_groups:
            alike: dict[tuple[int, ...], list[tuple[nn.Parameter, Tensor]]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    momentum = self.state[p].setdefault("momentum", torch.zeros_like(p))
                    momentum.lerp_(p.grad, 1 - group["momentum"])
                    alike.setdefault(tuple(p.shape), []).append((p, p.grad.lerp(momentum, group["momentum"])))
            for shape, members in alike.items():
                size = 0.2 * group["lr"] * max(shape) ** 0.5
                updates = orthogonalized(torch.stack([update for _, update in members]))
                for (p, _), update in zip(members, updates, strict=True):
                    p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update, alpha=size)
        return loss
