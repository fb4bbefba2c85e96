"""The anchor against Gaussians, on which the teacher's steps are a product of linear maps."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from avd.flow import many_step_sigmas
from avd.objectives.source import Stages
from avd.objectives.teacher_path.anchor import AnchorRecipe, AtPureNoise, anchor
from helpers.gaussian import GaussianVelocity

SHAPE = (3, 2, 3, 2, 2)
TEACHER = GaussianVelocity(1.0, 0.5)


def straight(eps: Tensor, sigmas: Tensor) -> Tensor:
    """The velocity that leads in one step to where Euler's method on the teacher does, step by step by hand."""
    x = eps
    for i in range(len(sigmas) - 1):
        above, below = sigmas[i].item(), sigmas[i + 1].item()
        x = x + (below - above) * TEACHER(x, torch.full((len(x),), above))
    return (eps - x) / (1 - sigmas[-1].item())


@pytest.mark.parametrize("steps", [1, 5])
def test_the_teachers_own_steps_have_no_gradient_and_others_lead_back(steps: int) -> None:
    eps, sigmas = torch.randn(SHAPE), many_step_sigmas(30, 5.0)[: steps + 1]
    optimum = straight(eps, sigmas)
    for too_fast in (0.0, 0.3):
        velocity = (optimum + too_fast).requires_grad_()
        term = anchor(velocity, eps_BCFHW=eps, teacher=TEACHER, sigmas=sigmas)
        (gradient,) = torch.autograd.grad(term.per_sample_B.sum(), velocity)
        expected = torch.full(SHAPE, 2 * too_fast / eps[0].numel())
        torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-6)


def test_one_step_is_distillation_of_the_velocity_and_all_of_them_of_the_clean_video() -> None:
    """At pure noise the exact velocity only knows the mean; the end of the path is a clip."""
    eps, everywhere = torch.randn(SHAPE), torch.ones(3)

    def loss(velocity: Tensor, sigmas: Tensor) -> float:
        return anchor(velocity, eps_BCFHW=eps, teacher=TEACHER, sigmas=sigmas).per_sample_B.max().item()

    assert loss(TEACHER(eps, everywhere), many_step_sigmas(30, 5.0)[:2]) < 1e-9
    fine = many_step_sigmas(1000, 1.0)
    assert loss(TEACHER.to_clean(eps, everywhere), fine) < 1e-4 < loss(TEACHER(eps, everywhere), fine)


def test_gradient_reaches_only_the_velocity_and_the_teacher_is_called_once_a_step() -> None:
    scale, levels = torch.tensor(0.5, requires_grad=True), []

    def teacher(x: Tensor, sigma: Tensor) -> Tensor:
        levels.append((sigma[0].item(), torch.is_grad_enabled()))
        return scale * x

    velocity, sigmas = torch.randn(SHAPE, requires_grad=True), AnchorRecipe(steps=3, grid=4, shift=1.0).sigmas
    anchor(velocity, eps_BCFHW=torch.randn(SHAPE), teacher=teacher, sigmas=sigmas).per_sample_B.sum().backward()
    assert velocity.grad is not None and velocity.grad.abs().max() > 0 and scale.grad is None
    assert levels == [(1.0, False), (0.75, False), (0.5, False)]


def test_more_steps_than_the_grid_has_are_refused() -> None:
    with pytest.raises(ValueError, match="steps must be at most grid"):
        AnchorRecipe(steps=6, grid=5)


class Numbers:
    """Integers below a bound, whatever they are for."""

    def integers(self, *what: int | str, high: int) -> Tensor:
        return torch.arange(3) % high


def test_the_level_is_pure_noise() -> None:
    levels = AtPureNoise().draw(Numbers(), Stages((0.999,), (1,)))  # type: ignore[arg-type]
    assert levels.sigma_B.tolist() == [1.0] * 3 and levels.index_B.tolist() == [0] * 3 and levels.frame_stride == 1
