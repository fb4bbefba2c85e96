"""What is gathered between measurements: against plain definitions, and over a checkpoint."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from avd.distillation.monitoring.statistics import FakeScoreLevel, WeightStatistics
from avd.objectives.adaptive_regression import LossMeans

SAMPLES = st.lists(st.tuples(st.floats(0.0, 1.0), st.integers(0, 2)), min_size=1, max_size=40)


@settings(deadline=None)
@given(batches=st.lists(SAMPLES, min_size=1, max_size=4), saved=st.integers(0, 4))
def test_weights_by_timestep(batches: list[list[tuple[float, int]]], saved: int) -> None:
    statistics = WeightStatistics((1000, 757.5, 522))
    for number, batch in enumerate(batches):
        if number == saved:  # as a checkpoint keeps them
            state = json.loads(json.dumps(statistics.state_dict()))
            statistics = WeightStatistics((1000, 757.5, 522))
            statistics.load_state_dict(state)
        weights, timesteps = zip(*batch, strict=True)
        statistics.add(torch.tensor(weights, dtype=torch.float64), torch.tensor(timesteps))
    metrics = statistics.pop_metrics()
    for i, name in enumerate(("1000", "757.5", "522")):
        weights = [weight for batch in batches for weight, timestep in batch if timestep == i]
        assert (f"weight_mean_{name}" in metrics) == bool(weights)
        if weights:
            assert metrics[f"weight_mean_{name}"] == pytest.approx(sum(weights) / len(weights))
            assert metrics[f"weight_least_{name}"] == pytest.approx(min(weights), abs=1e-12)
        assert (f"weight_low_{name}" in metrics) == (len(weights) >= 10)
        if len(weights) >= 10:
            assert metrics[f"weight_low_{name}"] == pytest.approx(
                sum(weight < 0.1 for weight in weights) / len(weights)
            )
    assert statistics.pop_metrics() == {}


def test_weights_that_are_not_finite_are_left_out() -> None:
    statistics, means = WeightStatistics((1000, 500)), LossMeans(2, k=3.0)
    first, second = torch.tensor([0, 1]), torch.tensor([0, 1, 1])
    statistics.add(means.weigh(torch.tensor([1.0, 1.0]), first), first)
    means.commit()
    weights = means.weigh(torch.tensor([3.0, 0.5, float("nan")]), second)
    statistics.add(weights, second)
    metrics = statistics.pop_metrics()
    assert metrics["weight_least_1000"] == pytest.approx(weights[0].item())
    assert metrics["weight_mean_500"] == pytest.approx((0.5 + weights[1].item()) / 2)


def test_level_trend_and_rise_of_the_fake_score() -> None:
    fake_score = FakeScoreLevel()
    assert fake_score.pop_metrics() == {}
    seen = []
    for losses in ([2.0, 4.0], [1.0, float("nan")], [1.5], [3.0]):
        for loss in losses:
            fake_score.add(loss)
        seen.append(fake_score.pop_metrics())
        state = json.loads(json.dumps(fake_score.state_dict()))
        fake_score = FakeScoreLevel()
        fake_score.load_state_dict(state)
    assert [metrics["fake_score_level"] for metrics in seen] == [3.0, 1.0, 1.5, 3.0]
    assert "fake_score_trend" not in seen[0]
    assert [metrics["fake_score_trend"] for metrics in seen[1:]] == pytest.approx([-2 / 3, 0.5, 1.0])
    assert [metrics["fake_score_rise"] for metrics in seen[1:]] == pytest.approx([0.0, 0.5, 2.0])
