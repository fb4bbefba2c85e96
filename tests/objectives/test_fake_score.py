"""The fake score's denoising loss: value, optimum, and where the gradient goes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from avd.engine.randomness import UpdateRandom
from avd.flow import renoise
from avd.objectives.fake_score import ScoreLevels, fake_score_denoising
from helpers.gaussian import GaussianVelocity


class Constant(nn.Module):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value))

    def forward(self, x: Tensor, sigma_B: Tensor) -> Tensor:
        return self.value * torch.ones_like(x)


def test_value_is_the_mean_square_error_of_the_velocity() -> None:
    x, eps, sigma = torch.randn(3, 2, 4, 2, 2), torch.randn(3, 2, 4, 2, 2), torch.tensor([0.1, 0.5, 1.0])
    term = fake_score_denoising(x, fake_score=lambda y, s: 2 * y, sigma_B=sigma, eps_BCFHW=eps)
    for i, s in enumerate(sigma.tolist()):
        noisy = (1 - s) * x[i] + s * eps[i]
        torch.testing.assert_close(term.per_sample_B[i], ((2 * noisy - (eps[i] - x[i])) ** 2).mean())


def test_the_optimum_is_the_mean_velocity() -> None:
    """Among all constants, the loss is least at the mean of eps - x; there its gradient vanishes."""
    x, eps = torch.randn(4, 2, 4, 2, 2) + 3, torch.randn(4, 2, 4, 2, 2)
    network = Constant((eps - x).mean().item())
    fake_score_denoising(x, fake_score=network, sigma_B=torch.rand(4), eps_BCFHW=eps).per_sample_B.mean().backward()
    assert network.value.grad is not None and network.value.grad.abs() < 1e-5


def test_the_true_velocity_has_no_loss() -> None:
    x, eps = torch.randn(2, 2, 4, 2, 2), torch.randn(2, 2, 4, 2, 2)
    term = fake_score_denoising(x, fake_score=lambda y, s: eps - x, sigma_B=torch.rand(2), eps_BCFHW=eps)
    assert term.per_sample_B.max() == 0


def test_gradient_reaches_only_the_fake_score() -> None:
    x, eps = torch.randn(2, 2, 4, 2, 2, requires_grad=True), torch.randn(2, 2, 4, 2, 2)
    network = Constant(0.5)
    fake_score_denoising(x, fake_score=network, sigma_B=torch.rand(2), eps_BCFHW=eps).per_sample_B.mean().backward()
    assert x.grad is None
    assert network.value.grad is not None and network.value.grad.abs() > 0


P = 0.757


@pytest.mark.parametrize("sigma", [0.8, 0.9, 1.0])
def test_of_an_experts_samples_the_optimum_is_the_exact_velocity(sigma: float) -> None:
    """Among all lines in x_sigma, the loss on Gaussian samples at level p is least at the Gaussian's own velocity; the
    naive target, eps - x_p, is another line."""
    data, count = GaussianVelocity(0.7, 0.5), 40_000
    generator = torch.Generator().manual_seed(0)
    clean, first, eps = torch.randn(3, count, 1, 1, 1, 1, generator=generator, dtype=torch.float64)
    x, level = (1 - P) * (0.7 + 0.5 * clean) + P * first, torch.full((count,), sigma, dtype=torch.float64)
    line = torch.zeros(2, dtype=torch.float64, requires_grad=True)

    def fake(noisy: Tensor, sigma_B: Tensor) -> Tensor:
        return data(noisy, sigma_B) + line[0] + line[1] * noisy

    loss_B = fake_score_denoising(x, fake_score=fake, sigma_B=level, eps_BCFHW=eps, end=P).per_sample_B
    (gradient,) = torch.autograd.grad(loss_B.mean(), line)
    spread = 2 * loss_B.detach().mean().sqrt() / count**0.5  # of the gradient's mean, about
    assert gradient.abs().max() < 4 * spread
    noisy = renoise(x, P, level, eps)
    naive = 2 * (data(noisy, level) - (eps - x)).mean()
    assert naive.abs() > 10 * spread


def test_near_an_experts_level_samples_count_less_and_clean_ones_never() -> None:
    x, eps = torch.randn(2, 2, 4, 2, 2), torch.randn(2, 2, 4, 2, 2)
    levels = torch.tensor([0.76, 0.99])
    fresh = (levels**2 - ((1 - levels) / (1 - P) * P) ** 2).sqrt()
    target = renoise(torch.zeros_like(x), 0.0, (levels + (1 - levels) * (P / (1 - P)) ** 2) / fresh, eps) - x / (1 - P)
    plain = target.square().flatten(1).mean(1)
    term = fake_score_denoising(x, fake_score=lambda y, s: 0 * y, sigma_B=levels, eps_BCFHW=eps, end=P)
    weights = torch.stack([10 * (fresh[0] / levels[0]) ** 2, torch.ones(())])
    assert weights[0] < 0.6
    torch.testing.assert_close(term.per_sample_B, weights * plain)
    term = fake_score_denoising(x, fake_score=lambda y, s: 0 * y, sigma_B=torch.tensor([0.02, 1.0]), eps_BCFHW=eps)
    assert torch.equal(term.per_sample_B, (eps - x).square().flatten(1).mean(1))


def test_levels_of_an_expert_lie_between_its_own_and_one() -> None:
    levels, random = ScoreLevels(0.02, 0.98, 5.0), UpdateRandom(0, 0, range(64))
    clean, noisy = levels.draw(random, "x"), levels.draw(random, "x", end=P)
    torch.testing.assert_close(noisy, P + (1 - P) * clean)
    assert noisy.min() > P and noisy.max() < 1
