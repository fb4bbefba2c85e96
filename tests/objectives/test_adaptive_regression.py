"""Adaptive regression against Eq. 6 and 7 worked by hand, and the cache's promises."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from avd.flow import add_noise
from avd.objectives.adaptive_regression import LossMeans, Order, regression


def sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z))


def weigh_all(means: LossMeans, losses: list[float], timesteps: list[int]) -> Tensor:
    """A full batch."""
    return weigh(means, torch.tensor(losses, dtype=torch.float64), torch.tensor(timesteps))


def weigh(means: LossMeans, losses: Tensor, timesteps: Tensor) -> Tensor:
    weights = means.weigh(losses, timesteps)
    means.commit()
    return weights


def by_hand(losses: list[float], omega: float, k: float, order: Order) -> tuple[list[float], float]:
    """Eq. 6 and 7 for one timestep, one sample at a time; the first sample is its own mean."""
    mean, weights = losses[0], []
    for loss in losses:
        before = mean
        mean = omega * mean + (1 - omega) * loss
        weights.append(1 - sigmoid(k * (loss - (before if order == "weight_first" else mean))))
    return weights, mean


@pytest.mark.parametrize("order", ["weight_first", "update_first"])
@given(losses=st.lists(st.floats(0.0, 5.0), min_size=1, max_size=8), omega=st.floats(0.0, 0.99))
def test_the_sequence_of_the_paper(order: Order, losses: list[float], omega: float) -> None:
    means = LossMeans(3, omega=omega, k=3.0, order=order)
    found = [weigh_all(means, [loss], [1]).item() for loss in losses]
    weights, mean = by_hand(losses, omega, 3.0, order)
    assert found == pytest.approx(weights, abs=1e-12)
    assert means.mean_S[1].item() == pytest.approx(mean, abs=1e-12)
    assert means.seen_S.tolist() == [False, True, False]


def test_timesteps_mixed_in_a_batch_keep_to_themselves() -> None:
    mixed, apart = LossMeans(2), LossMeans(2)
    for means in (mixed, apart):
        weigh_all(means, [1.0, 3.0], [0, 1])
    found = weigh_all(mixed, [1.2, 2.5, 1.4], [0, 1, 0])
    zeros, ones = weigh_all(apart, [1.2, 1.4], [0, 0]), weigh_all(apart, [2.5], [1])
    torch.testing.assert_close(found, torch.stack([zeros[0], ones[0], zeros[1]]))
    torch.testing.assert_close(mixed.mean_S, apart.mean_S)
    assert mixed.mean_S[0].item() == pytest.approx(0.95 * 1.0 + 0.05 * 1.3)


@given(st.permutations(list(range(6))))
def test_the_order_of_samples_in_a_batch_does_not_matter(order: list[int]) -> None:
    losses, timesteps = [0.5, 0.9, 2.0, 0.1, 0.4, 1.1], [0, 1, 1, 0, 2, 1]
    plain, permuted = LossMeans(3), LossMeans(3)
    for _ in range(2):
        expected = weigh_all(plain, losses, timesteps)
        found = weigh_all(permuted, [losses[i] for i in order], [timesteps[i] for i in order])
        torch.testing.assert_close(found, expected[order])
    torch.testing.assert_close(permuted.mean_S, plain.mean_S)


def test_the_first_samples_of_a_timestep_are_their_own_mean() -> None:
    means = LossMeans(2)
    assert weigh_all(means, [7.0], [0]).item() == 0.5
    assert weigh_all(means, [1.0, 3.0], [1, 1]).tolist() == [0.5, 0.5]
    assert means.mean_S.tolist() == [7.0, 2.0]


def test_weighed_after_the_update_the_first_samples_meet_their_mean() -> None:
    means = LossMeans(2, order="update_first")
    found = weigh_all(means, [1.0, 3.0], [1, 1])
    assert found.tolist() == pytest.approx([1 - sigmoid(-3), 1 - sigmoid(3)])
    assert means.mean_S.tolist() == [0.0, 2.0]


@given(st.integers(0, 5))
def test_a_batch_in_two_parts_is_the_batch(cut: int) -> None:
    losses, timesteps = torch.tensor([0.5, 0.9, 2.0, 0.1, 0.4]).double(), torch.tensor([0, 1, 1, 0, 0])
    full, parts = LossMeans(2), LossMeans(2)
    for _ in range(3):
        expected = weigh(full, losses, timesteps)
        found = torch.cat([parts.weigh(losses[:cut], timesteps[:cut]), parts.weigh(losses[cut:], timesteps[cut:])])
        parts.commit()
        assert torch.equal(found, expected)
        torch.testing.assert_close(parts.mean_S, full.mean_S)


def test_weights_fall_with_the_loss_and_are_a_half_at_the_mean() -> None:
    means = LossMeans(1)
    weigh_all(means, [1.0], [0])
    weights = weigh_all(means, [0.0, 0.5, 1.0, 1.5, 2.0, 6.0], [0] * 6)
    assert (weights.diff() < 0).all() and weights[2] == 0.5
    assert weights.max() < 1 and 0 < weights.min() < 1e-5


def test_a_state_continues_where_it_was_saved() -> None:
    means, resumed = LossMeans(2), LossMeans(2)
    weigh_all(means, [1.0, 0.3], [0, 0])
    resumed.load_state_dict(means.state_dict())
    for _ in range(3):
        losses = torch.rand(4, dtype=torch.float64)
        timesteps = torch.tensor([0, 1, 1, 0])
        assert torch.equal(weigh(means, losses, timesteps), weigh(resumed, losses, timesteps))
    assert torch.equal(means.mean_S, resumed.mean_S) and torch.equal(means.seen_S, resumed.seen_S)


def test_a_saved_state_does_not_change_under_training() -> None:
    means = LossMeans(1)
    weigh_all(means, [1.0], [0])
    saved = means.state_dict()
    weigh_all(means, [9.0], [0])
    assert saved["mean"].item() == 1.0


def test_ranks_that_share_sums_hold_the_cache_of_the_full_batch() -> None:
    """Two ranks with different samples of different timesteps; the second has none of timestep 0."""
    losses, timesteps = torch.rand(2, 3, dtype=torch.float64), torch.tensor([[0, 0, 1], [2, 1, 1]])

    def totals(rank: int) -> Tensor:
        onehot = nn.functional.one_hot(timesteps[rank], 3).double()
        return torch.stack([onehot.T @ losses[rank], onehot.sum(0)])

    together = LossMeans(3)
    ranks = [LossMeans(3, reduce=totals(1 - rank).add) for rank in range(2)]
    for _ in range(2):
        expected = weigh(together, losses.flatten(), timesteps.flatten())
        found = torch.cat([weigh(ranks[rank], losses[rank], timesteps[rank]) for rank in range(2)])
        torch.testing.assert_close(found, expected)
        for rank in ranks:
            torch.testing.assert_close(rank.mean_S, together.mean_S)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_leaves_the_cache_as_it_was(bad: float) -> None:
    means = LossMeans(2)
    weigh_all(means, [1.0], [0])
    weigh_all(means, [bad, 1.0, bad], [0, 0, 1])
    assert means.mean_S.tolist() == [1.0, 0.0] and means.seen_S.tolist() == [True, False]


@pytest.mark.parametrize("omega", [1.0, -0.1])
def test_an_omega_that_never_learns_is_refused(omega: float) -> None:
    with pytest.raises(ValueError, match="omega"):
        LossMeans(1, omega=omega)


class Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor, sigma_B: Tensor) -> Tensor:
        return self.scale * x


def reference_losses(x0: Tensor, eps: Tensor, sigma: Tensor, scale: Tensor) -> Tensor:
    noisy = torch.stack([(1 - s) * a + s * e for s, a, e in zip(sigma.tolist(), x0, eps, strict=True)])
    return ((scale * noisy - (eps - x0)) ** 2).flatten(1).mean(1)


def test_plain_regression_is_the_mean_square_error_of_the_velocity() -> None:
    x0, eps, sigma = torch.randn(3, 2, 4, 2, 2), torch.randn(3, 2, 4, 2, 2), torch.tensor([1.0, 0.9, 0.5])
    student = Linear()
    velocity = student(add_noise(x0, eps, sigma), sigma)
    term = regression(velocity, x0_BCFHW=x0, eps_BCFHW=eps, timestep_B=torch.tensor([0, 1, 2]), means=None)
    torch.testing.assert_close(term.per_sample_B, reference_losses(x0, eps, sigma, student.scale))
    assert term.metrics["regression_weight"] == 1.0


def test_weights_scale_the_gradient_and_carry_none() -> None:
    """The gradient is that of sum w_i L_i with w held constant."""
    x0, eps, sigma = torch.randn(3, 2, 4, 2, 2), torch.randn(3, 2, 4, 2, 2), torch.tensor([0.9, 0.9, 0.5])
    timestep = torch.tensor([0, 0, 1])
    student, means = Linear(), LossMeans(2, k=3.0)
    weigh_all(means, [1.5, 1.0], [0, 1])
    velocity = student(add_noise(x0.detach(), eps, sigma), sigma)
    term = regression(velocity, x0_BCFHW=x0.detach(), eps_BCFHW=eps, timestep_B=timestep, means=means)
    losses = reference_losses(x0.detach(), eps, sigma, student.scale)
    weights = [1 - sigmoid(3 * (l - mean)) for l, mean in zip(losses.tolist(), [1.5, 1.5, 1.0], strict=True)]
    expected = torch.tensor(weights) * losses
    torch.testing.assert_close(term.per_sample_B, expected, rtol=1e-4, atol=1e-6)
    (found,) = torch.autograd.grad(term.per_sample_B.sum(), student.scale)
    (wanted,) = torch.autograd.grad(expected.sum(), student.scale)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)
