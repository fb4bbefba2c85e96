"""Temporal regularization: values on known variances, and where truncation stops it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from avd.objectives.temporal import frame_variance, temporal_regularization


def alternating(amplitude: float, batch: int = 2, frames: int = 4) -> Tensor:
    """Frames at +amplitude and -amplitude in turn: variance amplitude^2, whatever the content."""
    signs = torch.tensor([1.0, -1.0]).repeat(frames // 2).view(1, 1, frames, 1, 1)
    return torch.randn(batch, 3, 1, 2, 2) + amplitude * signs


def loss_of(x: Tensor, truncation: float = -math.inf) -> Tensor:
    return temporal_regularization(x, truncation=truncation).per_sample_B.mean()


def test_variance_is_numpys_over_frames() -> None:
    x = torch.randn(2, 3, 5, 2, 2)
    expected = np.var(x.numpy(), axis=2).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(frame_variance(x).numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize("amplitude", [0.1, 1.0, 3.0])
def test_value_on_a_known_variance(amplitude: float) -> None:
    term = temporal_regularization(alternating(amplitude), eps=0.01)
    torch.testing.assert_close(term.per_sample_B, torch.full((2,), -math.log(amplitude**2 + 0.01)))
    assert term.metrics["temporal_variance"] == pytest.approx(amplitude**2, rel=1e-5)


def test_the_expectation_stands_inside_the_logarithm() -> None:
    """One loss a batch, of the batch's mean variance; not the mean of the samples' losses."""
    x = torch.cat([alternating(0.5, 1), alternating(2.0, 1)])
    term = temporal_regularization(x)
    torch.testing.assert_close(term.per_sample_B, torch.full((2,), -math.log((0.25 + 4.0) / 2 + 1e-6)))


def test_descent_adds_motion() -> None:
    x = alternating(0.5).requires_grad_()
    loss_of(x).backward()
    assert x.grad is not None
    assert loss_of((x - 0.1 * x.grad).detach()) < loss_of(x)


def test_below_the_truncation_the_gradient_is_exactly_zero() -> None:
    truncation = 0.6
    moving = alternating(math.sqrt(math.exp(-0.5))).requires_grad_()  # plain loss 0.5
    loss = loss_of(moving, truncation)
    loss.backward()
    assert loss.item() == pytest.approx(truncation)
    assert moving.grad is not None and moving.grad.abs().max() == 0


def test_above_the_truncation_nothing_changes() -> None:
    x = alternating(math.sqrt(math.exp(-0.7)))  # plain loss 0.7
    plain, truncated = x.clone().requires_grad_(), x.clone().requires_grad_()
    loss_of(plain).backward()
    loss_of(truncated, 0.6).backward()
    assert plain.grad is not None and truncated.grad is not None
    torch.testing.assert_close(truncated.grad, plain.grad, rtol=0, atol=0)


def test_a_static_video_has_a_finite_loss_and_no_gradient() -> None:
    """Variance is flat at a constant input: a student that is exactly static is not moved by this loss."""
    x = torch.randn(2, 3, 1, 2, 2).expand(2, 3, 5, 2, 2).clone().requires_grad_()
    loss = loss_of(x)
    loss.backward()
    assert loss.item() == pytest.approx(-math.log(1e-6), rel=1e-4)
    assert x.grad is not None and x.grad.isfinite().all() and x.grad.abs().max() < 1e-2
