"""Metrics gathered over the updates between two measurements. Their state is small: checkpoints hold it as JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from avd.engine.ranks import SINGLE_PROCESS, Ranks

_ENOUGH = 10
"""Least number of samples of which a share is meaningful."""
LOW_WEIGHT = 0.1
"""A regression sample with a smaller weight counts for next to nothing."""


class WeightStatistics:
    """The adaptive regression's weights, one set of metrics per student timestep (of 1000)."""

    def __init__(self, timesteps: Sequence[float], ranks: Ranks = SINGLE_PROCESS) -> None:
        self._names, self._ranks = [f"{timestep:g}" for timestep in timesteps], ranks
        self._clear()

    def add(self, weight_B: Tensor, timestep_B: Tensor) -> None:
        """Weights of this rank's samples of one update, at timesteps given by index; all ranks must add theirs.

        Weights that are not finite are left out.
        """
        sums = torch.zeros(3, len(self._names), dtype=torch.float64)
        below_one = torch.zeros(len(self._names), dtype=torch.float64)
        for weight, i in zip(weight_B.tolist(), timestep_B.tolist(), strict=True):
            if not math.isfinite(weight):
                continue
            sums[:, i] += torch.tensor([1.0, weight, weight < LOW_WEIGHT], dtype=torch.float64)
            below_one[i] = max(below_one[i].item(), 1.0 - weight)
        counts, totals, lows = self._ranks.all_sum(sums).tolist()
        leasts = (1.0 - self._ranks.all_max(below_one)).tolist()
        for i, (count, total, low, least) in enumerate(zip(counts, totals, lows, leasts, strict=True)):
            self._count[i] += round(count)
            self._sum[i] += total
            self._low[i] += round(low)
            self._least[i] = min(self._least[i], least)

    def pop_metrics(self) -> dict[str, float]:
        """Mean and least since the last call of the timesteps that were met, and the share below `LOW_WEIGHT` of those
        that were met often enough."""
        metrics: dict[str, float] = {}
        for i, name in enumerate(self._names):
            if self._count[i]:
                metrics[f"weight_mean_{name}"] = self._sum[i] / self._count[i]
                metrics[f"weight_least_{name}"] = self._least[i]
            if self._count[i] >= _ENOUGH:
                metrics[f"weight_low_{name}"] = self._low[i] / self._count[i]
        self._clear()
        return metrics

    def state_dict(self) -> dict[str, Any]:
        return {
            "count": list(self._count),
            "sum": list(self._sum),
            "low": list(self._low),
            "least": list(self._least),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._count, self._sum = list(state["count"]), list(state["sum"])
        self._low, self._least = list(state["low"]), list(state["least"])

    def _clear(self) -> None:
        stages = len(self._names)
        self._count, self._low = [0] * stages, [0] * stages
        self._sum, self._least = [0.0] * stages, [1.0] * stages


class FakeScoreLevel:
    """The fake score's loss: its mean since the last measurement, and where it is going."""

    def __init__(self) -> None:
        self._sum, self._count = 0.0, 0
        self._before: float | None = None
        self._lowest: float | None = None

    def add(self, loss: float) -> None:
        if math.isfinite(loss):
            self._sum, self._count = self._sum + loss, self._count + 1

    def pop_metrics(self) -> dict[str, float]:
        """Level; trend, its change since the last call; rise above its lowest so far (both relative, -1 to any)."""
        if not self._count:
            return {}
        level = self._sum / self._count
        metrics = {"fake_score_level": level}
        if self._before and self._lowest:
            metrics["fake_score_trend"] = level / self._before - 1.0
            metrics["fake_score_rise"] = max(level / self._lowest - 1.0, 0.0)
        self._before = level
        self._lowest = level if self._lowest is None else min(level, self._lowest)
        self._sum, self._count = 0.0, 0
        return metrics

    def state_dict(self) -> dict[str, Any]:
        return {"sum": self._sum, "count": self._count, "before": self._before, "lowest": self._lowest}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._sum, self._count = state["sum"], state["count"]
        self._before, self._lowest = state["before"], state["lowest"]
