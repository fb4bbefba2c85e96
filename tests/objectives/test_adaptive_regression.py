"""Adaptive regression against Eq. 6 and 7 worked by hand, and the cache's promises."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from avd.config import load_recipe
from avd.flow import add_noise, velocity_of
from avd.objectives import adaptive_regression
from avd.objectives.adaptive_regression import DeviationUnit, LossMeans, Order, clip_variance, information, regression
from avd.objectives.source import AtStages, Stages
from avd.types import UserError
from helpers.cycles import make_batch, make_cycle, random_for_exit, update_random
from helpers.gaussian import GaussianVelocity


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


each_deviation = pytest.mark.parametrize("deviation", ["loss", "spread"])


@each_deviation
@given(order=st.permutations(list(range(6))))
def test_the_order_of_samples_in_a_batch_does_not_matter(deviation: DeviationUnit, order: list[int]) -> None:
    losses, timesteps = [0.5, 0.9, 2.0, 0.1, 0.4, 1.1], [0, 1, 1, 0, 2, 1]
    plain, permuted = (LossMeans(3, deviation=deviation) for _ in range(2))
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


@each_deviation
@given(cut=st.integers(0, 5))
def test_a_batch_in_two_parts_is_the_batch(deviation: DeviationUnit, cut: int) -> None:
    losses, timesteps = torch.tensor([0.5, 0.9, 2.0, 0.1, 0.4]).double(), torch.tensor([0, 1, 1, 0, 0])
    full, parts = (LossMeans(2, deviation=deviation) for _ in range(2))
    for _ in range(3):
        expected = weigh(full, losses, timesteps)
        found = torch.cat([parts.weigh(losses[:cut], timesteps[:cut]), parts.weigh(losses[cut:], timesteps[cut:])])
        parts.commit()
        torch.testing.assert_close(found, expected, rtol=0, atol=0 if deviation == "loss" else 1e-12)
        torch.testing.assert_close(parts.mean_S, full.mean_S)


def test_weights_fall_with_the_loss_and_are_a_half_at_the_mean() -> None:
    means = LossMeans(1)
    weigh_all(means, [1.0], [0])
    weights = weigh_all(means, [0.0, 0.5, 1.0, 1.5, 2.0, 6.0], [0] * 6)
    assert (weights.diff() < 0).all() and weights[2] == 0.5
    assert weights.max() < 1 and 0 < weights.min() < 1e-5


@each_deviation
def test_a_state_continues_where_it_was_saved(deviation: DeviationUnit) -> None:
    means, resumed = (LossMeans(2, deviation=deviation) for _ in range(2))
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


@each_deviation
def test_ranks_that_share_sums_hold_the_cache_of_the_full_batch(deviation: DeviationUnit) -> None:
    """Two ranks with different samples of different timesteps; the second has none of timestep 0."""
    losses, timesteps = torch.rand(2, 3, dtype=torch.float64), torch.tensor([[0, 0, 1], [2, 1, 1]])

    def totals(rank: int) -> Tensor:
        onehot = nn.functional.one_hot(timesteps[rank], 3).double()
        sums = [onehot.T @ losses[rank], onehot.sum(0)]
        if deviation == "spread":
            sums.append(onehot.T @ (losses[rank] - before[timesteps[rank]]) ** 2)
        return torch.stack(sums)

    together = LossMeans(3, deviation=deviation)
    ranks = [LossMeans(3, deviation=deviation, reduce=lambda own, r=rank: own + totals(1 - r)) for rank in range(2)]
    for _ in range(2):
        before = together.mean_S.clone()
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


# -- a deviation in units of what is usual ------------------------------------------------------------------------


def spread_by_hand(losses: list[list[float]], omega: float) -> tuple[float, float]:
    """Mean and unbiased standard deviation of batches of losses at one timestep, from the weight of each loss."""
    values, weights = list(losses[0]), [1 / len(losses[0])] * len(losses[0])
    for batch in losses[1:]:
        weights = [omega * w for w in weights] + [(1 - omega) / len(batch)] * len(batch)
        values += batch
    mean = sum(w * v for w, v in zip(weights, values, strict=True))
    variance = sum(w * (v - mean) ** 2 for w, v in zip(weights, values, strict=True))
    return mean, math.sqrt(variance / (1 - sum(w * w for w in weights)))


BATCHES = st.lists(st.lists(st.floats(0.0, 5.0), min_size=1, max_size=3), min_size=2, max_size=5)


@given(batches=BATCHES, omega=st.sampled_from([0.0, 0.5, 0.95]))
def test_the_spread_is_that_of_all_losses_under_the_means_weights(batches: list[list[float]], omega: float) -> None:
    means = LossMeans(1, omega=omega, deviation="spread")
    for losses in batches[:-1]:
        weigh_all(means, losses, [0] * len(losses))
    if sum(map(len, batches[:-1])) > 1 and not (omega == 0 and len(batches[-2]) == 1):
        mean, spread = spread_by_hand(batches[:-1], omega)
        assert means.mean_S.item() == pytest.approx(mean, abs=1e-9)
        assert means.spread_S.item() == pytest.approx(spread, abs=1e-6)
        if spread > 1e-3:
            expected = [1 - sigmoid(3 * (loss - mean) / spread) for loss in batches[-1]]
            assert weigh_all(means, batches[-1], [0] * len(batches[-1])).tolist() == pytest.approx(expected, abs=1e-3)


def test_the_spread_of_independent_losses_is_found_without_bias() -> None:
    """Averaged over many caches of two batches of two; the plain weighted variance would be 0.59 of it."""
    losses = 4.0 + 0.5 * torch.randn(2, 2, 20_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    means = LossMeans(20_000, omega=0.8, deviation="spread")
    for batch in losses:
        weigh(means, batch.flatten(), torch.arange(20_000).repeat(2))
    assert means.spread_S.square().mean().item() == pytest.approx(0.25, rel=0.03)


@given(scale=st.floats(1e-3, 1e3), offset=st.floats(-2.0, 2.0))
def test_only_weights_by_the_spread_are_free_of_the_losses_scale(scale: float, offset: float) -> None:
    losses = [[0.9, 1.3, 1.1], [1.0, 1.6, 0.7]]

    def weights(deviation: DeviationUnit, scale: float, offset: float) -> Tensor:
        means = LossMeans(1, deviation=deviation)
        return [weigh_all(means, [scale * l + offset for l in batch], [0] * 3) for batch in losses][1]

    torch.testing.assert_close(weights("spread", scale, offset), weights("spread", 1.0, 0.0), rtol=0, atol=1e-4)
    assert (weights("spread", 1.0, 0.0) - 0.5).abs().max() > 0.4
    assert (weights("loss", 1e-3, 0.0) - 0.5).abs().max() < 1e-3


def test_a_spread_takes_two_losses_and_until_then_a_weight_is_a_half() -> None:
    means = LossMeans(2, deviation="spread")
    assert weigh_all(means, [1.0], [0]).item() == 0.5
    assert means.spread_S.tolist() == [0.0, 0.0]
    assert weigh_all(means, [9.0], [0]).item() == 0.5
    assert means.spread_S[0].item() == pytest.approx(8 / math.sqrt(2))
    assert weigh_all(means, [1.4], [0]).item() == pytest.approx(0.5)


# -- what an input tells ------------------------------------------------------------------------------------------


def test_information_is_the_squared_correlation_of_noised_and_clean_data() -> None:
    """The exact velocity of Gaussian data errs by what its input leaves open."""
    std, sigma = 0.7, torch.tensor([1.0, 0.9, 0.757, 0.3, 0.02])
    generator = torch.Generator().manual_seed(0)
    x0 = 0.4 + std * torch.randn(5, 1, 20_000, 1, 1, generator=generator)
    eps = torch.randn(x0.shape, generator=generator)
    velocity = GaussianVelocity(0.4, std)(add_noise(x0, eps, sigma), sigma)
    loss_B = (velocity - velocity_of(x0, eps)).square().flatten(1).mean(1)
    signal = ((1 - sigma) * std).square()
    expected = signal / (signal + sigma.square())
    torch.testing.assert_close(information(loss_B, sigma, std**2), expected, rtol=0, atol=0.02)
    assert information(2 * loss_B, sigma, std**2)[0] == 0  # a sampler's error at pure noise is twice the mean's


def test_the_variance_of_clips_is_around_each_channels_mean() -> None:
    x0 = torch.tensor([1.0, -3.0]).view(1, 2, 1, 1, 1) + torch.randn(64, 2, 3, 4, 4) * 0.5
    assert clip_variance(x0) == pytest.approx(0.25, rel=0.05)


def weights_of(cycle_changes: tuple[str, ...], exit_stage: int = 0) -> tuple[float, float, float]:
    """The regression's loss, plain loss and weight in the first update of a tiny run."""
    cycle = make_cycle(*(f"objective.regression.{change}" for change in cycle_changes))
    metrics = cycle.run(make_batch(cycle.recipe), random_for_exit(exit_stage))
    return metrics["regression"], metrics["regression_plain"], metrics["regression_weight"]


def test_the_options_multiply(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the first update every sample is as usual, and Eq. 7 weighs all by 1/2."""
    # networks of random weights know less than a guess would: of clips that vary more, they tell something
    monkeypatch.setattr(adaptive_regression, "clip_variance", lambda x0: 20.0 * x0.square().mean().item())
    _, plain, adaptive = weights_of(())
    informed_only = weights_of(("adaptive=false", "informed=true"))[2]
    assert adaptive == 0.5 and 0 < informed_only < 1
    assert weights_of(("informed=true",))[1:] == pytest.approx((plain, 0.5 * informed_only))
    assert weights_of(("informed=true", "deviation=spread"))[2] == pytest.approx(0.5 * informed_only)
    assert weights_of(("informed=true", "timestep_weights=[3, 3, 3, 3]"))[2] == pytest.approx(1.5 * informed_only)


# -- constants per timestep ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("strides", [((1, 1),) * 4, ((2, 2), (2, 1), (2, 1), (1, 1))])
def test_timesteps_of_weight_zero_are_never_drawn(strides: tuple[tuple[int, int], ...]) -> None:
    stages = Stages((1.0, 0.9, 0.757, 0.522), strides)
    law, plain = AtStages("regression", only=(1, 3)), AtStages("regression")
    drawn = [law.draw(update_random(n, count=8), stages) for n in range(20)]
    assert set(torch.cat([each.index_B for each in drawn]).tolist()) == {1, 3}
    for each in drawn:
        assert {strides[i] for i in each.index_B.tolist()} == {(each.frame_stride, each.space_stride)}
        torch.testing.assert_close(each.sigma_B, torch.tensor(stages.sigmas)[each.index_B])
    assert set(torch.cat([plain.draw(update_random(n), stages).index_B for n in range(20)]).tolist()) == {0, 1, 2, 3}


def test_constants_weigh_their_own_timestep() -> None:
    section = load_recipe("avd", ["objective.regression.timestep_weights=[0, 0.5, 1, 4]"]).objective
    law = section.section("regression").law  # type: ignore[attr-defined]
    assert law.only == (1, 2, 3)
    loss, plain, weight = weights_of(("adaptive=false", "timestep_weights=[0, 0, 0, 4]"))
    assert weight == 4 and loss == pytest.approx(4 * plain)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("[1, 1]", r"objective.regression: timestep_weights has 2 values: give one per student timestep \(4\)"),
        ("[0, 0, 0, 0]", "timestep_weights are all 0"),
        ("[1, 1, 1, -1]", "timestep_weights"),
    ],
)
def test_constants_that_do_not_fit_are_refused(weights: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_recipe("avd", [f"objective.regression.timestep_weights={weights}"])


def test_constants_are_of_the_timesteps_that_an_expert_trains() -> None:
    changes = ["objective.regression.weight=1", "objective.regression.timestep_weights={}"]
    load_recipe("phased-dmd-low", [changes[0], changes[1].format("[0, 1]")])
    with pytest.raises(UserError, match=r"has 4 values: give one per student timestep \(2\)"):
        load_recipe("phased-dmd-low", [changes[0], changes[1].format("[0, 0, 1, 1]")])
