"""Adaptive weights, as those of the regression (AVD Eq. 6 and 7), for any other term on real data.

A loss L_s at a noise level of band t is weighed by what is usual in that band, and the weight carries no gradient:

    mean_{t,s} = omega mean_{t,s-1} + (1 - omega) L_s
    w_{t,s}    = 1 - sigmoid(k (L_s - mean_{t,s-1}) / spread_{t,s-1})

The paper leaves open whether such weights help terms other than the regression. Deviations are in units of the losses'
own running spread: what a term measures may be a thousand times smaller than the regression's losses, for which the
paper's k is meant. A term here has many noise levels where the regression has a few, so running means are kept for
bands of them: the loss changes with the noise level, and a level that comes up in every third update only has no mean
to speak of.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from torch import Tensor

from avd.objectives.adaptive_regression import LossMeans
from avd.objectives.term import Sample, Setting
from avd.types import LossTerm

BANDS = 8
"""Bands of noise levels, each as likely as the others."""


class Weighed:
    """A loss whose samples are weighed; see `objectives.term.Evaluate`.

    `band` is the band, from 0, that each sample lies in, (B,). The metric that ends in _weight is the mean weight.
    """

    def __init__(
        self, name: str, loss: Callable[[Sample], LossTerm], band: Callable[[Sample], Tensor], means: LossMeans
    ) -> None:
        self.name, self.means = name, means
        self._loss, self._band = loss, band

    def __call__(self, sample: Sample) -> LossTerm:
        term = self._loss(sample)
        weight_B = self.means.weigh(term.per_sample_B, self._band(sample)).to(term.per_sample_B)
        metrics = {**term.metrics, f"{self.name}_weight": weight_B.mean().item()}
        return replace(term, per_sample_B=weight_B * term.per_sample_B, metrics=metrics)

    def commit(self) -> None:
        self.means.commit()

    def state_dict(self) -> dict[str, Tensor]:
        return {f"{self.name}.{key}": tensor for key, tensor in self.means.state_dict().items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.means.load_state_dict({key: state[f"{self.name}.{key}"] for key in self.means.state_dict()})


def weigh_by_band(
    name: str, loss: Callable[[Sample], LossTerm], levels: int, omega: float, k: float, setting: Setting
) -> Weighed:
    """A loss at the levels of a grid, whose index a sample carries, weighed by `BANDS` equal parts of the grid."""

    def band(sample: Sample) -> Tensor:
        assert sample.index_B is not None
        return sample.index_B * BANDS // levels

    return Weighed(name, loss, band, LossMeans(BANDS, omega=omega, k=k, deviation="spread", reduce=setting.all_sum))
