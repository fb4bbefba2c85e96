"""How large each term's gradient on the student is, measured without a further pass and without touching training.

Every term's gradient goes through the clean video that the student predicts, x = x_sigma - sigma v; there the terms are
compared. With L_b a sample's own weighted loss, of D values and B samples,

    gradient_rms = root mean square over all B D values of  D dL_b/dx         (L = mean_b L_b, so D dL_b/dx = B D dL/dx)

which depends neither on the size of the batch nor on that of the clip. For distribution matching alone it is the root
mean square of its normalised gradient g. Where a gradient is a sum of parts that only its term can tell apart
(`LossTerm.gradient_parts`), the term measures them, and they are averaged here.
"""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor

from avd.engine.ranks import SINGLE_PROCESS, Ranks
from avd.flow import per_sample


class TermGradients:
    """Gathers the gradients of named terms, one backward pass after the other.

    A batch may come in several parts, as long as each part's loss is its share of the batch's mean.
    """

    def __init__(self) -> None:
        self._squares: dict[str, list[Tensor]] = defaultdict(list)
        self._values: dict[str, int] = defaultdict(int)
        self._parts: dict[str, list[Tensor]] = defaultdict(list)

    def on_video(self, name: str, x: Tensor) -> Tensor:
        """`x`, the student's clean video, for term `name` to be computed from. Gradients pass unchanged."""
        return self._watch(name, x, torch.ones(len(x), device=x.device))

    def on_velocity(self, name: str, v: Tensor, sigma_B: Tensor) -> Tensor:
        """The same for a term on the velocity: dL/dx = -dL/dv / sigma."""
        return self._watch(name, v, 1.0 / sigma_B.to(v.device))

    def add_part(self, name: str, square_B: Tensor, count: int) -> None:
        """Note the mean squares of a part of a term's gradient for some of a rank's `count` samples."""
        self._parts[name].append(square_B.sum() / count)

    def pop_metrics(self, ranks: Ranks = SINGLE_PROCESS) -> dict[str, float]:
        """`<term>_gradient_rms` of every term and part since the last call, over the samples of all ranks."""
        squares = {
            f"{name}_gradient_rms": torch.stack(parts).sum().item() * self._values[name]
            for name, parts in self._squares.items()
        }
        squares |= {f"{name}_gradient_rms": torch.stack(parts).sum().item() for name, parts in self._parts.items()}
        for gathered in (self._squares, self._values, self._parts):
            gathered.clear()
        return {name: square**0.5 for name, square in ranks.mean_metrics(squares).items()}

    def _watch(self, name: str, x: Tensor, scale_B: Tensor) -> Tensor:
        if not x.requires_grad:
            return x
        seen = x.view_as(x)  # a node of its own: a leaf's hook would see the gradients of all terms

        def note(gradient: Tensor) -> None:
            scaled = gradient.detach().float() * per_sample(scale_B, gradient)
            self._squares[name].append(scaled.square().sum())
            self._values[name] += gradient.numel()

        seen.register_hook(note)
        return seen
