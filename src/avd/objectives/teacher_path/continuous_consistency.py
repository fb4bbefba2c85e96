"""Continuous-time consistency distillation (sCM, arXiv 2410.11081, Sec. 4), for a flow.

A network makes the clean video f(x, s) = x - s v(x, s) of a noisy one. Along the teacher's path, dx/ds = v_teacher, all
noisy videos should become the same clean one: df/ds = 0. With dv/ds the total derivative, in which x moves too,

    g       = df/ds = (v_teacher - v) - r s dv/ds         the tangent; r rises from 0 to 1 as the run warms up
    g_unit  = g / (rms(g) + c / sqrt(D))                  c = 0.1; the root mean square is over a sample's D values
    loss    = 1/2 mean (n (v - stop_gradient(v)) - g_unit)^2         n = sqrt(s^2 + (1 - s)^2)

so that d loss / d v = -n g_unit / D: each sample moves its clean video against its tangent, all by steps of one size.
The loss itself is near 1/2 whatever the student does; what falls is rms(g). This is the paper's loss without its
wrapper: in TrigFlow, x_t = cos(t) x0 + sin(t) eps, the tangent is cos(t) n^2 g, of which the unit tangent is the same.
At r = 0 it is distillation of the guided velocity.

The paper sums over a sample's values; here losses are means, and its unit vector is a g_unit of root mean square 1.

The derivative is a central difference, along the teacher's path:

    dv/ds = (v(x + h v_teacher, s + h) - v(x - h v_teacher, s - h)) / 2h

The exact one is of no use with a network that sees the noise level through sinusoids of high frequency, unless it was
trained for it: they make a derivative that is mostly noise, while differences over h of 0.005 to 0.05 agree.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from pydantic import Field
from torch import Tensor

from avd.flow import per_sample
from avd.objectives.adaptive_regression import LossMeans
from avd.objectives.consistency import Predict
from avd.objectives.passes import Pass, Place
from avd.objectives.source import DataSource, Levels, Random, Stages
from avd.objectives.term import GuidedSection, Sample, Setting, Term
from avd.section import MOST_UPDATES
from avd.types import LossTerm

Tangent = Callable[[Tensor, Tensor, Tensor], Tensor]
"""dv/ds of (x_BCFHW, sigma_B, dx/ds), where x moves with the noise level."""

_FLOOR = 0.1
"""c, which keeps a tangent near 0 from being blown up."""
_BANDS = 5
"""Equal bands of noise levels, by which rms(g) is logged."""


def continuous_consistency(
    velocity_BCFHW: Tensor, *, x_BCFHW: Tensor, sigma_B: Tensor, teacher: Predict, tangent: Tangent, warmth: float = 1.0
) -> LossTerm:
    """The loss of the student's velocity at `x_BCFHW`, of noise level `sigma_B`; gradient reaches only the velocity.

    `teacher` is the guided velocity and `tangent` the student's; both are called once, without gradient. `warmth` is r,
    from 0 to 1. The values "tangent_rms" are rms(g), (B,).
    """
    with torch.no_grad():
        v, s = velocity_BCFHW.detach(), per_sample(sigma_B, x_BCFHW)
        path = teacher(x_BCFHW, sigma_B)
        g = (path - v) - warmth * s * tangent(x_BCFHW, sigma_B, path)
        rms_B = g.square().flatten(1).mean(1).sqrt()
        unit = g / per_sample(rms_B + _FLOOR / g[0].numel() ** 0.5, g)
        n = (s.square() + (1 - s).square()).sqrt()
    loss_B = 0.5 * (n * (velocity_BCFHW - v) - unit).square().flatten(1).mean(1)
    metrics = {"tangent_rms": rms_B.mean().item()}
    return LossTerm("continuous_consistency", loss_B, metrics, {"tangent_rms": rms_B})


def central_difference(velocity: Predict, h: float) -> Tangent:
    """The derivative along a direction by two calls of `velocity`, `h` up and down in noise level.

    Within `h` of 0 or 1 it is one-sided on that side: levels end there, and it is divided by the true distance.
    """

    def tangent(x_BCFHW: Tensor, sigma_B: Tensor, direction_BCFHW: Tensor) -> Tensor:
        above_B, below_B = (sigma_B + h).clamp_max(1.0), (sigma_B - h).clamp_min(0.0)

        def at(level_B: Tensor) -> Tensor:
            return velocity(x_BCFHW + per_sample(level_B - sigma_B, x_BCFHW) * direction_BCFHW, level_B)

        return (at(above_B) - at(below_B)) / per_sample(above_B - below_B, x_BCFHW)

    return tangent


@dataclass(frozen=True)
class LogitNormal:
    """Noise levels whose logit is normal; see `objectives.source.Law`. Their index is the band that they lie in."""

    mean: float
    std: float
    name: str = "continuous consistency"
    place: Place = "full"

    def draw(self, random: Random, stages: Stages) -> Levels:
        sigma_B = torch.sigmoid(self.mean + self.std * random.normal(self.name, "level", shape=()))
        return Levels(sigma_B, (sigma_B * _BANDS).long().clamp_max(_BANDS - 1))

    def teaches(self, stages: Stages) -> frozenset[int]:
        return stages.full


class ContinuousConsistencyRecipe(GuidedSection):
    """Continuous-time consistency distillation; weight 0 leaves it out."""

    level_mean: float = Field(0.7, ge=-10, le=10)
    """Mean of the logit of the noise levels: the paper's -0.8 of log tan t, moved to 20 latent frames."""
    level_std: float = Field(1.6, gt=0, le=10)
    difference: float = Field(0.02, ge=1e-4, le=0.5)
    """h, the distance in noise level over which the student's derivative is taken."""
    warmup: int = Field(1000, ge=0, le=MOST_UPDATES)
    """Student updates over which r rises from 0 to 1."""

    @property
    def law(self) -> LogitNormal:
        return LogitNormal(self.level_mean, self.level_std)


class ContinuousConsistency:
    """See `objectives.term.Evaluate`. Remembers how many updates it has seen, and the usual rms(g) by noise level."""

    def __init__(self, section: ContinuousConsistencyRecipe, setting: Setting) -> None:
        self._section, self.updates = section, torch.zeros((), dtype=torch.int64)
        self._usual = LossMeans(_BANDS, reduce=setting.all_sum)

    def __call__(self, sample: Sample) -> LossTerm:
        section, networks = self._section, sample.networks
        assert sample.x_BCFHW is not None and sample.sigma_B is not None and sample.index_B is not None
        term = continuous_consistency(
            sample.output_BCFHW,
            x_BCFHW=sample.x_BCFHW,
            sigma_B=sample.sigma_B,
            teacher=lambda x, sigma: networks.teacher(x, sigma, section.standard_guidance).velocity,
            tangent=central_difference(networks.student, section.difference),
            warmth=min(1.0, self.updates.item() / section.warmup) if section.warmup else 1.0,
        )
        usual = zip(self._usual.seen_S.tolist(), self._usual.mean_S.tolist(), strict=True)
        by_band = {f"tangent_rms_{i}": mean for i, (seen, mean) in enumerate(usual) if seen}
        self._usual.weigh(term.values["tangent_rms"], sample.index_B)  # for its means alone
        return replace(term, metrics={**term.metrics, **by_band})

    def commit(self) -> None:
        self.updates += 1
        self._usual.commit()

    def state_dict(self) -> dict[str, Tensor]:
        state = {"updates": self.updates.clone(), **self._usual.state_dict()}
        return {f"continuous_consistency.{name}": tensor for name, tensor in state.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        own = {name: state[f"continuous_consistency.{name}"] for name in ("updates", *self._usual.state_dict())}
        self.updates = own.pop("updates").clone()
        self._usual.load_state_dict(own)


TERM = Term(
    name="continuous_consistency",
    about="derivative of the student's clean video along the teacher's path",
    paper="sCM, arXiv 2410.11081",
    section=ContinuousConsistencyRecipe,
    source=lambda section: DataSource(section.law),
    passes=lambda section: (
        Pass("teacher with guidance, tangent", "teacher", section.branches),
        Pass("student above, tangent", "student"),  # one after the other: not a batch of two
        Pass("student below, tangent", "student"),
    ),
    transition="renoise",
    make=ContinuousConsistency,
)
