"""Which value of a method's knob is used: a rule that was fixed before anything was tuned.

Every trial is a run with a seed and on captions that judge no row. By the oracle, against rendered clips,

    loss = (1 - instances) + (1 - captions) + |dynamic degree - rendered| + 10 saturation error

so that a hundredth of saturation counts as much as a tenth of the clips. The value with the lowest loss is used if it
is better than the recipe's own by more than the standard error of their difference, else the recipe's own: few captions
would otherwise choose by chance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from avd.evaluation.rows import Row
from avd.evaluation.suites.world import WorldSuite

_OF_SATURATION = 10.0


@dataclass(frozen=True)
class Trial:
    """A value of a knob, the loss of its rows, and that loss's standard error."""

    value: Any
    loss: float
    error: float

    @staticmethod
    def of(value: Any, rows: Sequence[Row], rendered: Row) -> Trial:
        """From the rows of its seeds and that of the rendered clips of the same captions."""
        losses = [_loss(row, rendered) for row in rows]
        squares = sum(_squared_error(row) for row in rows)
        return Trial(value, sum(losses) / len(losses), squares**0.5 / len(losses))


def choose(trials: Sequence[Trial]) -> Trial:
    """The trial whose value is used; the first is the recipe's own."""
    own, best = trials[0], min(trials, key=lambda trial: trial.loss)
    return best if own.loss - best.loss > (own.error**2 + best.error**2) ** 0.5 else own


def _loss(row: Row, rendered: Row) -> float:
    return (
        (1 - _score(row, "instance_preservation"))
        + (1 - _score(row, "caption_accuracy"))
        + abs(_score(row, "dynamic_degree") - _score(rendered, "dynamic_degree"))
        + _OF_SATURATION * _score(row, "saturation_error")
    )


def _score(row: Row, measure: str) -> float:
    """A caption that promises nothing is kept."""
    value = row.score(WorldSuite.name, measure)
    return 1.0 if value is None else value


def _squared_error(row: Row) -> float:
    """The square of the loss's standard error: that of a sum, taken as if its terms were independent."""
    weights = {
        "instance_preservation": 1.0,
        "caption_accuracy": 1.0,
        "dynamic_degree": 1.0,
        "saturation_error": _OF_SATURATION,
    }
    return sum((weight * (row.error(WorldSuite.name, key) or 0.0)) ** 2 for key, weight in weights.items())
