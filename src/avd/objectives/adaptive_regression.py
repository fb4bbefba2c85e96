"""Adaptive regression on real videos (AVD Eq. 5 to 7).

A real latent is noised to one of the student's timesteps and its velocity predicted; the plain loss of sample s at
timestep t is L_s = mean (v - (eps - x0))^2. One running mean a timestep tells what is usual there:

    mean_{t,s} = omega mean_{t,s-1} + (1 - omega) L_s                    (6)
    w_{t,s}    = 1 - sigmoid(k (L_s - mean_{t,s-1}))                     (7)

A sample much worse than usual is unreliable: its weight goes to 0. At the mean it is 1/2. The weight carries no
gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from avd.flow import velocity_of
from avd.objectives.source import AtStages, DataSource
from avd.objectives.term import Sample, Setting, Term, TermSection
from avd.section import MOST_WEIGHT
from avd.types import LossTerm

Order = Literal["weight_first", "update_first"]
Reduce = Callable[[Tensor], Tensor]
"""Sums a tensor over all ranks; the identity in a single process."""


class LossMeans:
    """The cache of Eq. 6: one running mean per student timestep, and the weights it gives (Eq. 7).

    A batch may mix timesteps, come in several parts, and be spread over ranks. Each sample is weighed against its own
    timestep's mean; `commit`, once a batch, lets each timestep's mean take one step of Eq. 6 with the average loss of
    the samples that were there. `reduce` adds sums and counts over ranks before the step, so all hold one cache. The
    first samples of a timestep are their own mean: their weight is 1/2. A loss that is not finite leaves no trace in
    the cache: the step it spoils is skipped, the run continues.

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
            raise ValueError(f"omega is {omega}: it must be in [0, 1)")
        self.omega, self.k, self.order, self.reduce = omega, k, order, reduce
        self.mean_S = torch.zeros(timesteps, dtype=torch.float64)
        self.seen_S = torch.zeros(timesteps, dtype=torch.bool)
        self._gathered = torch.zeros(2, timesteps, dtype=torch.float64)
        """Sums and counts of the losses weighed since the last commit."""

    @torch.no_grad()
    def weigh(self, loss_B: Tensor, timestep_B: Tensor) -> Tensor:
        """Weights in (0, 1) of losses at timesteps given by index, in float64 on the CPU."""
        loss, index = loss_B.detach().double().cpu(), timestep_B.cpu()
        finite = loss.isfinite()
        self._gathered[0].index_add_(0, index, loss.where(finite, 0.0))
        self._gathered[1].index_add_(0, index, finite.double())
        if self.order == "update_first":
            self.commit()
        reference_B = torch.where(self.seen_S[index], self.mean_S[index], loss)
        return 1 - torch.sigmoid(self.k * (loss - reference_B))

    @torch.no_grad()
    def commit(self) -> None:
        """One step of Eq. 6 with what was weighed since the last."""
        sum_S, count_S = self.reduce(self._gathered)
        present_S = count_S > 0
        loss_S = sum_S / count_S.clamp_min(1)
        before_S = torch.where(self.seen_S, self.mean_S, loss_S)
        self.mean_S = torch.where(present_S, self.omega * before_S + (1 - self.omega) * loss_S, self.mean_S)
        self.seen_S = self.seen_S | present_S
        self._gathered = torch.zeros_like(self._gathered)

    def state_dict(self) -> dict[str, Tensor]:
        return {"mean": self.mean_S, "seen": self.seen_S}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.mean_S, self.seen_S = state["mean"].clone(), state["seen"].clone()


def regression(
    velocity_BCFHW: Tensor,
    *,
    x0_BCFHW: Tensor,
    eps_BCFHW: Tensor,
    timestep_B: Tensor,
    means: LossMeans | None,
) -> LossTerm:
    """Weighted loss of the student's velocity on noised real latents; gradient reaches only the velocity.

    `timestep_B` are the indices of the student timesteps that `x0_BCFHW` was noised to with `eps_BCFHW`. Without
    `means` every weight is 1: plain regression. With them, `means.commit()` is the caller's, once the full batch has
    been through.
    """
    loss_B = (velocity_BCFHW - velocity_of(x0_BCFHW, eps_BCFHW)).square().flatten(1).mean(1)
    values: dict[str, Tensor] = {}
    weight_B = torch.ones_like(loss_B)
    if means is not None:
        values = {"weight": means.weigh(loss_B, timestep_B), "timestep": timestep_B}
        weight_B = values["weight"].to(loss_B)
    metrics = {"regression_plain": loss_B.mean().item(), "regression_weight": weight_B.mean().item()}
    return LossTerm("regression", weight_B * loss_B, metrics, values)


class RegressionRecipe(TermSection):
    """Adaptive regression on real videos; weight 0 leaves the branch out."""

    weight: float = Field(2.0, ge=0, le=MOST_WEIGHT)
    adaptive: bool = True
    omega: float = Field(0.95, ge=0, lt=1)
    k: float = Field(3.0, ge=0, le=1e6)
    order: Order = "weight_first"
    """Whether a sample is weighed by the running mean before it (paper) or after it (released code)."""


class Regression:
    """See `objectives.term.Evaluate`. `means` is None for plain regression, which remembers nothing."""

    def __init__(self, section: RegressionRecipe, setting: Setting) -> None:
        self.means: LossMeans | None = None
        if section.adaptive:
            self.means = LossMeans(
                setting.stages, omega=section.omega, k=section.k, order=section.order, reduce=setting.all_sum
            )

    def __call__(self, sample: Sample) -> LossTerm:
        assert sample.x0_BCFHW is not None and sample.eps_BCFHW is not None and sample.index_B is not None
        return regression(
            sample.output_BCFHW,
            x0_BCFHW=sample.x0_BCFHW,
            eps_BCFHW=sample.eps_BCFHW,
            timestep_B=sample.index_B,
            means=self.means,
        )

    def commit(self) -> None:
        if self.means is not None:
            self.means.commit()

    def state_dict(self) -> dict[str, Tensor]:
        state = {} if self.means is None else self.means.state_dict()
        return {f"loss_means.{name}": tensor for name, tensor in state.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        if self.means is not None:
            self.means.load_state_dict({name: state[f"loss_means.{name}"] for name in self.means.state_dict()})


TERM = Term(
    name="regression",
    about="adaptively weighted error of the velocity on real videos",
    paper="AVD, Eq. 5 to 7",
    section=RegressionRecipe,
    source=lambda section: DataSource(AtStages("regression")),
    make=Regression,
    one_part=lambda section: section.order == "update_first",
)
