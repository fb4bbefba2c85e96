"""The fake score's denoising loss: value, optimum, and where the gradient goes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from avd.objectives.fake_score import fake_score_denoising


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
