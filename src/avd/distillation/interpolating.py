"""An interpolator that learns with its student.

The gradient of a sample that leaves its rollout at half rate or half resolution passes through the interpolator to the
student. With `rollout.interpolator: trained` it is the interpolator's too: the terms judge the filled clip, so it
learns to fill in what the teacher's score and the temporal term ask for, where a mean square error asks for the mean of
all that fits. Fills before the exit carry no gradient, as the stages before it do not. Sampled with, saved beside the
student and exported is the average of its weights, with the student's decay.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from torch import Tensor

from avd.config import Recipe
from avd.distillation.roles import Network, Trained
from avd.engine.ema import EMA
from avd.engine.packing import pack_weights, unpack_weights
from avd.engine.ranks import Ranks
from avd.models.interpolator import FrameInterpolator

_ROLE, _AVERAGE = "interpolator", "interpolator_average"


class TrainedInterpolator:
    """`network` learns, on every rank in full, and `average` follows it. The optimizer is the student's, at
    `rollout.interpolator_rate` and without weight decay, which would pull it towards no fill at all."""

    def __init__(self, network: FrameInterpolator, recipe: Recipe, ranks: Ranks) -> None:
        changes = {"learning_rate": recipe.rollout.interpolator_rate, "weight_decay": 0.0}
        optimizer = recipe.student.optimizer.model_copy(update=changes)
        self.network = network.to(ranks.device).train().requires_grad_(True)
        self._ranks, self._average = ranks, EMA(self.network, recipe.student.ema)
        self._role = Trained(_ROLE, cast(Network, self.network), optimizer)  # which asks for its parameters alone

    @property
    def average(self) -> FrameInterpolator:
        return self._average.module

    def step(self) -> dict[str, float]:
        """Take one step, if the update's sample left its rollout at a stage that is filled in; its metrics."""
        if all(parameter.grad is None for parameter in self.network.parameters()):
            return {}
        self._ranks.average_gradients(self.network)
        steps = self._role.steps
        norm = self._role.step()
        if self._role.steps > steps:
            self._average.update(self.network, steps)
        return {"interpolator_grad_norm": norm, "skipped_interpolator": float(self._role.skipped)}

    def average_tensors(self) -> dict[str, Tensor]:
        return pack_weights(_AVERAGE, self.average)

    def tensors(self) -> dict[str, Tensor]:
        return self._role.tensors() | self.average_tensors()

    def state(self) -> dict[str, Any]:
        return {_ROLE: self._role.state()}

    def load(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        self._role.load(tensors, state[_ROLE])
        unpack_weights(_AVERAGE, self.average, tensors)


def saved_interpolator(
    recipe: Recipe, tensors: Mapping[str, Tensor], start: FrameInterpolator | None
) -> FrameInterpolator | None:
    """The averaged interpolator in a checkpoint, in the place of the weights it began with; `start` if none learnt."""
    if start is not None and recipe.rollout.interpolator == "trained":
        unpack_weights(_AVERAGE, start, tensors)
    return start
