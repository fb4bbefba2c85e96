"""Adaptive regression on real videos (AVD Eq. 5 to 7).

A real latent is noised to one of the student's timesteps and its velocity predicted; the plain loss of sample s at
timestep t is L_s = mean (v - (eps - x0))^2. One running mean a timestep tells what is usual there:

    mean_{t,s} = omega mean_{t,s-1} + (1 - omega) L_s                    (6)
    w_{t,s}    = 1 - sigmoid(k (L_s - mean_{t,s-1}))                     (7)

A sample much worse than usual is unreliable: its weight goes to 0. At the mean it is 1/2. The weight carries no
gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from avd.flow import add_noise, velocity_of
from avd.types import LossTerm

Order = Literal["weight_first", "update_first"]
Reduce = Callable[[Tensor], Tensor]
"""Sums a tensor over all ranks; the identity in a single process."""
Listener = Callable[[Tensor, Tensor], None]
"""Told the weights of samples and their timesteps' indices."""


class LossMeans:
    """The cache of Eq. 6: one running mean a student timestep, and the weights it gives (Eq. 7).

    A batch may mix timesteps, come in several parts, and be spread over ranks. Each sample is weighed against its own
    timestep's mean; `commit`, once a batch, lets each timestep's mean take one step of Eq. 6 with the average loss of
    the samples that were there. `reduce` adds sums and counts over ranks before the step, so all hold one cache. The
    first samples of a timestep are their own mean: their weight is 1/2. A loss that is not finite leaves no trace in
    the cache: the step it spoils is skipped, the run goes on.

    `order` is the paper's "weight_first" (weigh by the mean before this batch) or "update_first", as the authors'
    released code does it: there `weigh` commits first, so a batch must come in one part.
    """

    def __init__(
        self,
        timesteps: int,
        *,
        omega: float = 0.95,
        k: float = 3.0,
        order: Order = "weight_first",
        reduce: Reduce = lambda sums: sums,
    ) -> None:
        if not 0.0 <= omega < 1.0:
            raise ValueError(f"omega is {omega}: it must lie in [0, 1)")
        self.omega, self.k, self.order, self.reduce = omega, k, order, reduce
        self.listener: Listener = lambda weight_B, timestep_B: None
        self.mean_S = torch.zeros(timesteps, dtype=torch.float64)
        self.seen_S = torch.zeros(timesteps, dtype=torch.bool)
        self._gathered = torch.zeros(2, timesteps, dtype=torch.float64)
        """Sums and counts of the losses weighed since the last commit."""

    @torch.no_grad()
    def weigh(self, loss_B: Tensor, timestep_B: Tensor) -> Tensor:
        """Weights in (0, 1) of losses at timesteps given by index."""
        loss, index = loss_B.detach().double().cpu(), timestep_B.cpu()
        finite = loss.isfinite()
        self._gathered[0].index_add_(0, index, loss.where(finite, 0.0))
        self._gathered[1].index_add_(0, index, finite.double())
        if self.order == "update_first":
            self.commit()
        reference_B = torch.where(self.seen_S[index], self.mean_S[index], loss)
        weight = 1 - torch.sigmoid(self.k * (loss - reference_B))
        self.listener(weight, index)
        return weight.to(loss_B)

    @torch.no_grad()
    def commit(self) -> None:
        """One step of Eq. 6 with what was weighed since the last."""
        sum_S, count_S = self.reduce(self._gathered)
        here_S = count_S > 0
        loss_S = sum_S / count_S.clamp_min(1)
        before_S = torch.where(self.seen_S, self.mean_S, loss_S)
        self.mean_S = torch.where(here_S, self.omega * before_S + (1 - self.omega) * loss_S, self.mean_S)
        self.seen_S = self.seen_S | here_S
        self._gathered = torch.zeros_like(self._gathered)

    def state_dict(self) -> dict[str, Tensor]:
        return {"mean": self.mean_S, "seen": self.seen_S}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.mean_S, self.seen_S = state["mean"].clone(), state["seen"].clone()


def regression(
    x0_BCFHW: Tensor,
    *,
    student: Callable[[Tensor, Tensor], Tensor],
    sigma_B: Tensor,
    eps_BCFHW: Tensor,
    timestep_B: Tensor,
    means: LossMeans | None,
) -> LossTerm:
    """Weighted loss of real latents at the student's timesteps; gradient reaches only the student.

    `student(x, sigma_B)` predicts the velocity; `sigma_B` are the noise levels of the timesteps whose indices are
    `timestep_B`. Without `means` every weight is 1: plain regression. With them, `means.commit()` is the caller's,
    once the whole batch has been through.
    """
    velocity = student(add_noise(x0_BCFHW, eps_BCFHW, sigma_B), sigma_B)
    loss_B = (velocity - velocity_of(x0_BCFHW, eps_BCFHW)).square().flatten(1).mean(1)
    weight_B = torch.ones_like(loss_B) if means is None else means.weigh(loss_B, timestep_B)
    metrics = {"regression_plain": loss_B.mean().item(), "regression_weight": weight_B.mean().item()}
    return LossTerm("regression", weight_B * loss_B, metrics)
