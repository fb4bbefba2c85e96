"""Adaptive regression on real videos (AVD Eq. 5 to 7).

A real latent is noised to one of the student's timesteps and its velocity predicted; the plain loss of sample s at
timestep t is L_s = mean (v - (eps - x0))^2. One running mean a timestep tells what is usual there:

    mean_{t,s} = omega mean_{t,s-1} + (1 - omega) L_s                    (6)
    w_{t,s}    = 1 - sigmoid(k (L_s - mean_{t,s-1}))                     (7)

A sample much worse than usual is unreliable: its weight goes to 0. At the mean it is 1/2. The weight carries no
gradient.

Three options that the paper does not have. A deviation can be measured in units of what is usual at its timestep, so
that one k means the same at every timestep and on any data (`deviation: spread`); s is the spread of the losses around
their running mean, with the same omega:

    w_{t,s} = 1 - sigmoid(k (L_s - mean_{t,s-1}) / s_{t,s-1})

A timestep can weigh by what its input tells about the clip (`informed`). The error of the clean video x0 = x - t v is
t^2 L, with t the noise level, and a guess that knows nothing errs by the variance V of the clips:

    u_t = max(0, 1 - t^2 mean_{t,s-1} / V)

At t = 1 the input is noise and only the prompt tells anything, so regression there teaches a mean, which is blur, and
u is small; at low noise it is near 1. The error of v itself, whose target holds the noise that the input shows, would
not tell the two apart. Lastly `timestep_weights` are constants, one per timestep.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from avd.flow import velocity_of
from avd.objectives.source import AtStages, DataSource
from avd.objectives.term import Sample, Setting, Term, TermSection, TrainedStages
from avd.section import MOST_WEIGHT
from avd.types import LossTerm

Order = Literal["weight_first", "update_first"]
DeviationUnit = Literal["loss", "spread"]
Reduce = Callable[[Tensor], Tensor]
"""Sums a tensor over all ranks; the identity in a single process."""

_REAL_LATENTS = 256
"""Real latents whose variance is that of the clips."""


class LossMeans:
    """The cache of Eq. 6: one running mean per student timestep, and the weights it gives (Eq. 7).

    A batch may mix timesteps, come in several parts, and be spread over ranks. Each sample is weighed against its own
    timestep's mean; `commit`, once a batch, lets each timestep's mean take one step of Eq. 6 with the average loss of
    the samples that were there. `reduce` adds sums and counts over ranks before the step, so all hold one cache. The
    first samples of a timestep are their own mean: their weight is 1/2. A loss that is not finite leaves no trace in
    the cache: the step it spoils is skipped, the run continues.

    `order` is the paper's "weight_first" (weigh by the mean before this batch) or "update_first", as the authors'
    released code does it: there `weigh` commits first, so a batch must come in one part.

    With `deviation` "spread", deviations are in units of the losses' standard deviation around their running mean. It
    is estimated from the same exponential weights, without bias for independent losses, and needs two of them: until
    then every weight is 1/2.
    """

    def __init__(
        self,
        timesteps: int,
        *,
        omega: float = 0.95,
        k: float = 3.0,
        order: Order = "weight_first",
        deviation: DeviationUnit = "loss",
        reduce: Reduce = lambda sums: sums,
    ) -> None:
        if not 0.0 <= omega < 1.0:
            raise ValueError(f"omega is {omega}: it must be in [0, 1)")
        self.omega, self.k, self.order, self.deviation, self.reduce = omega, k, order, deviation, reduce
        self.mean_S = torch.zeros(timesteps, dtype=torch.float64)
        self.seen_S = torch.zeros(timesteps, dtype=torch.bool)
        self.variance_S = torch.zeros(timesteps, dtype=torch.float64)
        """The losses' variance around their running mean, under the mean's own weights; kept for "spread" only."""
        self.concentration_S = torch.ones(timesteps, dtype=torch.float64)
        """Sum of the squares of these weights: 1 divided by it is how many losses the mean is worth."""
        self._gathered = torch.zeros(3 if deviation == "spread" else 2, timesteps, dtype=torch.float64)
        """Sums and counts of the losses weighed since the last commit, and sums of their squared deviations."""

    @torch.no_grad()
    def weigh(self, loss_B: Tensor, timestep_B: Tensor) -> Tensor:
        """Weights in (0, 1) of losses at timesteps given by index, in float64 on the CPU."""
        loss, index = loss_B.detach().double().cpu(), timestep_B.cpu()
        finite = loss.isfinite()
        self._gathered[0].index_add_(0, index, loss.where(finite, 0.0))
        self._gathered[1].index_add_(0, index, finite.double())
        if self.deviation == "spread":
            self._gathered[2].index_add_(0, index, (loss - self.mean_S[index]).square().where(finite, 0.0))
        if self.order == "update_first":
            self.commit()
        deviation_B = loss - self.usual(loss, index)
        if self.deviation == "spread":
            spread_B = self.spread_S[index]
            deviation_B = torch.where(spread_B > 0, deviation_B / spread_B, 0.0)
        return 1 - torch.sigmoid(self.k * deviation_B)

    def usual(self, loss_B: Tensor, timestep_B: Tensor) -> Tensor:
        """The running mean at each sample's timestep, in float64 on the CPU; of one never seen, its own loss."""
        loss, index = loss_B.detach().double().cpu(), timestep_B.cpu()
        return torch.where(self.seen_S[index], self.mean_S[index], loss)

    @property
    def spread_S(self) -> Tensor:
        """Standard deviation of the losses at each timestep; 0 where fewer than two have been seen."""
        several_S = self.concentration_S < 1
        unbiased_S = self.variance_S / (1 - self.concentration_S).where(several_S, 1.0)
        return unbiased_S.where(several_S, 0.0).sqrt()

    @torch.no_grad()
    def commit(self) -> None:
        """One step of Eq. 6 with what was weighed since the last."""
        sum_S, count_S, *square_S = self.reduce(self._gathered)
        present_S = count_S > 0
        loss_S = sum_S / count_S.clamp_min(1)
        if square_S:
            self._commit_spread(square_S[0], loss_S, count_S)
        before_S = torch.where(self.seen_S, self.mean_S, loss_S)
        self.mean_S = torch.where(present_S, self.omega * before_S + (1 - self.omega) * loss_S, self.mean_S)
        self.seen_S = self.seen_S | present_S
        self._gathered = torch.zeros_like(self._gathered)

    def _commit_spread(self, square_S: Tensor, loss_S: Tensor, count_S: Tensor) -> None:
        """The step of `commit` for the spread: what the losses weighed before, and a batch of `count_S` more, have
        together. `square_S` sums the batch's squared deviations from the mean before it, `loss_S` is its mean."""
        number_S, new = count_S.clamp_min(1), 1 - self.omega
        apart_S = (loss_S - self.mean_S).square()
        inside_S = (square_S / number_S - apart_S).clamp_min(0.0)
        variance_S = self.omega * self.variance_S + new * (inside_S + self.omega * apart_S)
        concentration_S = self.omega**2 * self.concentration_S + new**2 / number_S
        variance_S = variance_S.where(self.seen_S, inside_S)
        concentration_S = concentration_S.where(self.seen_S, 1 / number_S)
        self.variance_S = variance_S.where(count_S > 0, self.variance_S)
        self.concentration_S = concentration_S.where(count_S > 0, self.concentration_S)

    def state_dict(self) -> dict[str, Tensor]:
        state = {"mean": self.mean_S, "seen": self.seen_S}
        if self.deviation == "spread":
            state |= {"variance": self.variance_S, "concentration": self.concentration_S}
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.mean_S, self.seen_S = state["mean"].clone(), state["seen"].clone()
        if self.deviation == "spread":
            self.variance_S, self.concentration_S = state["variance"].clone(), state["concentration"].clone()


def clip_variance(x0_BCFHW: Tensor) -> float:
    """Variance of clean latents around each channel's mean over clips, frames and places; about 1, as they are
    whitened, but not of data unlike those that the whitening is of."""
    return x0_BCFHW.float().var(dim=(0, 2, 3, 4), correction=0).mean().item()


def information(loss_B: Tensor, sigma_B: Tensor, variance: float) -> Tensor:
    """What inputs of noise level sigma tell about clips of that variance, in [0, 1], by the loss of the velocity there:
    0 for no more than a guess would know, 1 for everything."""
    return (1 - sigma_B.to(loss_B).square() * loss_B / variance).clamp(0.0, 1.0)


def regression(
    velocity_BCFHW: Tensor,
    *,
    x0_BCFHW: Tensor,
    eps_BCFHW: Tensor,
    timestep_B: Tensor,
    means: LossMeans | None,
    adaptive: bool = True,
    by_timestep: Callable[[Tensor], Tensor] | None = None,
) -> LossTerm:
    """Weighted loss of the student's velocity on noised real latents; gradient reaches only the velocity.

    `timestep_B` are the indices of the student timesteps that `x0_BCFHW` was noised to with `eps_BCFHW`. Without
    `means` every weight is 1: plain regression. With them, `means.commit()` is the caller's, once the full batch has
    been through. `adaptive` false leaves Eq. 7 out. `by_timestep` gives each sample a further weight, from the usual
    losses (B,) at the samples' timesteps, which without means are their own.
    """
    loss_B = (velocity_BCFHW - velocity_of(x0_BCFHW, eps_BCFHW)).square().flatten(1).mean(1)
    values: dict[str, Tensor] = {}
    weight_B = torch.ones_like(loss_B)
    usual_B = loss_B.detach()
    if means is not None:
        trust_B = means.weigh(loss_B, timestep_B)
        usual_B = means.usual(loss_B, timestep_B)
        if adaptive:
            values = {"weight": trust_B, "timestep": timestep_B}
            weight_B = trust_B.to(loss_B)
    if by_timestep is not None:
        weight_B = weight_B * by_timestep(usual_B).to(loss_B)
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
    deviation: DeviationUnit = "loss"
    """What k multiplies: a loss's distance from its mean (paper), or that in units of the usual one."""
    informed: bool = False
    """Whether a timestep also weighs by what its input tells about the clip."""
    every: int = Field(1, ge=1, le=100)
    """It acts in one of so many updates; the weight is that of these updates."""
    timestep_weights: tuple[Annotated[float, Field(ge=0, le=MOST_WEIGHT)], ...] | None = None
    """A constant weight per student timestep, of which one of 0 is left out. None: 1 for each."""

    @property
    def law(self) -> AtStages:
        weights = self.timestep_weights
        return AtStages("regression", None if weights is None else tuple(i for i, w in enumerate(weights) if w))


def _check(section: RegressionRecipe, stages: TrainedStages) -> None:
    weights, count = section.timestep_weights, len(stages.timesteps)
    if weights is None:
        return
    if len(weights) != count:
        raise ValueError(f"timestep_weights has {len(weights)} values: give one per student timestep ({count})")
    if not any(weights):
        raise ValueError("timestep_weights are all 0: to leave the term out, set its weight to 0")


class Regression:
    """See `objectives.term.Evaluate`. `means` is None where nothing asks for what is usual."""

    def __init__(self, section: RegressionRecipe, setting: Setting) -> None:
        self._section = section
        self.means: LossMeans | None = None
        if section.adaptive or section.informed:
            self.means = LossMeans(
                len(setting.sigmas),
                omega=section.omega,
                k=section.k,
                order=section.order,
                deviation=section.deviation,
                reduce=setting.all_sum,
            )
        self._variance = clip_variance(setting.real_latents(_REAL_LATENTS)) if section.informed else None

    def __call__(self, sample: Sample) -> LossTerm:
        assert sample.x0_BCFHW is not None and sample.eps_BCFHW is not None and sample.index_B is not None
        return regression(
            sample.output_BCFHW,
            x0_BCFHW=sample.x0_BCFHW,
            eps_BCFHW=sample.eps_BCFHW,
            timestep_B=sample.index_B,
            means=self.means,
            adaptive=self._section.adaptive,
            by_timestep=partial(self._by_timestep, sample) if self._weighs_timesteps else None,
        )

    @property
    def _weighs_timesteps(self) -> bool:
        return self._section.informed or self._section.timestep_weights is not None

    def _by_timestep(self, sample: Sample, usual_B: Tensor) -> Tensor:
        assert sample.sigma_B is not None and sample.index_B is not None
        weight_B, constants = torch.ones_like(usual_B), self._section.timestep_weights
        if constants is not None:
            weight_B = torch.tensor(constants).to(usual_B)[sample.index_B.to(usual_B.device)]
        if self._variance is not None:
            weight_B = weight_B * information(usual_B, sample.sigma_B, self._variance)
        return weight_B

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
    source=lambda section: DataSource(section.law),
    make=Regression,
    one_part=lambda section: section.order == "update_first",
    check=_check,
    noisy=True,  # a velocity is one whatever it leads to
    every=lambda section: section.every,
)
