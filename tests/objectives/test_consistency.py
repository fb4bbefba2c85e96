"""Consistency distillation against Gaussians, whose paths and discrete fixed point are known."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from avd.flow import add_noise, guide, many_step_sigmas
from avd.objectives.consistency import ConsistencyRecipe, Distance, OnGrid, consistency
from avd.objectives.source import Stages
from helpers.gaussian import GaussianVelocity

SHAPE = (4, 2, 3, 2, 2)
SHIFT = 3.0
Network = Callable[[Tensor, Tensor], Tensor]


@pytest.fixture(autouse=True)
def double() -> object:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def fixed_point(teacher: GaussianVelocity, steps: int) -> Network:
    """The network whose clean video is where Euler's method on the grid ends: the optimum on that grid."""
    grid = many_step_sigmas(steps, SHIFT)

    def velocity(x: Tensor, sigma_B: Tensor) -> Tensor:
        rows = []
        for row, sigma in zip(x, sigma_B, strict=True):
            place = int((grid - sigma).abs().argmin())
            clean = teacher.clean_by_euler(row[None], grid[place:])[0]
            rows.append((row - clean) / sigma if sigma else torch.zeros_like(row))
        return torch.stack(rows)

    return velocity


def at(places: list[int], steps: int, skip: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Noisy samples, their levels, and those that the teacher steps to."""
    grid = many_step_sigmas(steps, SHIFT)
    index = torch.tensor(places)
    sigma, below = grid[index], grid[(index + skip).clamp_max(steps)]
    return add_noise(1 + 0.5 * torch.randn(SHAPE), torch.randn(SHAPE), sigma), sigma, below


def gradient(student: Network, target: Network, teacher: Network, places: list[int], steps: int, **how: str) -> Tensor:
    x, sigma, below = at(places, steps)
    velocity = student(x, sigma).requires_grad_()
    term = consistency(
        velocity,
        x_BCFHW=x,
        sigma_B=sigma,
        below_B=below,
        teacher=teacher,
        target=target,
        **how,  # type: ignore[arg-type]
    )
    (found,) = torch.autograd.grad(term.per_sample_B.sum(), velocity)
    return found


@pytest.mark.parametrize("distance", ["huber", "square"])
def test_the_discrete_fixed_point_has_no_gradient(distance: Distance) -> None:
    teacher = GaussianVelocity(1.0, 0.5)
    optimum = fixed_point(teacher, 8)
    found = gradient(optimum, optimum, teacher, [0, 3, 6, 7], 8, distance=distance)
    assert found.abs().max() < 1e-9
    # It is not the exact path's end, and that has a gradient.
    exact = lambda x, s: (x - teacher.clean(x, s)) / s.view(-1, 1, 1, 1, 1)  # noqa: E731
    assert gradient(exact, optimum, teacher, [0, 3, 6, 7], 8, distance=distance).abs().max() > 1e-4


def test_the_fixed_point_nears_the_exact_path_as_the_grid_is_refined() -> None:
    teacher, x = GaussianVelocity(1.0, 0.5), torch.randn(SHAPE)
    exact = teacher.clean(x, torch.ones(4))
    errors = [
        (teacher.clean_by_euler(x, many_step_sigmas(steps, SHIFT)) - exact).abs().max().item()
        for steps in (8, 16, 32, 64)
    ]
    assert all(1.6 < coarse / fine < 2.4 for coarse, fine in pairwise(errors))  # first order


def test_a_guided_teacher_of_two_gaussians_is_a_gaussian() -> None:
    cond, uncond = GaussianVelocity(1.0, 0.5), GaussianVelocity(0.2, 0.5)

    def teacher(x: Tensor, sigma: Tensor) -> Tensor:
        return guide(cond(x, sigma), uncond(x, sigma), 5.0)

    optimum = fixed_point(GaussianVelocity(0.2 + 5.0 * 0.8, 0.5), 8)
    assert gradient(optimum, optimum, teacher, [0, 2, 5, 7], 8).abs().max() < 1e-9


def test_off_the_optimum_the_gradient_points_back() -> None:
    """A student whose clean video is too high by d: its velocity must rise, as x0 = x - sigma v."""
    teacher = GaussianVelocity(1.0, 0.5)
    optimum = fixed_point(teacher, 8)

    def high(x: Tensor, sigma: Tensor) -> Tensor:
        return optimum(x, sigma) - 0.1 / sigma.view(-1, 1, 1, 1, 1)

    x, sigma, _ = at([0, 2, 4, 6], 8)
    found = gradient(high, optimum, teacher, [0, 2, 4, 6], 8, distance="square")
    expected = -2 * 0.1 * sigma.view(-1, 1, 1, 1, 1).expand(SHAPE) / x[0].numel()
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


def test_at_the_lowest_level_the_target_is_the_teachers_own_step() -> None:
    """f(x, 0) = x whatever the target network says."""
    teacher = GaussianVelocity(1.0, 0.5)
    nonsense = lambda x, s: torch.full_like(x, 1e3)  # noqa: E731
    assert gradient(teacher, nonsense, teacher, [7, 7, 7, 7], 8).abs().max() < 1e-9


def test_huber_is_the_absolute_value_of_large_differences() -> None:
    x, sigma, below = at([0, 1, 2, 3], 8)
    zero = lambda y, s: torch.zeros_like(y)  # noqa: E731
    velocity = torch.randn(SHAPE) * 100
    how = {"x_BCFHW": x, "sigma_B": sigma, "below_B": below, "teacher": zero, "target": zero}
    huber = consistency(velocity, **how).per_sample_B  # type: ignore[arg-type]
    expected = (sigma.view(-1, 1, 1, 1, 1) * velocity).abs().flatten(1).mean(1)
    torch.testing.assert_close(huber, expected, rtol=1e-4, atol=0)
    square = consistency(velocity, distance="square", **how).per_sample_B  # type: ignore[arg-type]
    torch.testing.assert_close(square, (sigma.view(-1, 1, 1, 1, 1) * velocity).square().flatten(1).mean(1))


def test_gradient_reaches_only_the_velocity_and_each_network_is_asked_once() -> None:
    scale, calls = torch.tensor(0.5, requires_grad=True), []

    def network(name: str) -> Network:
        def velocity(x: Tensor, sigma: Tensor) -> Tensor:
            calls.append((name, torch.is_grad_enabled()))
            return scale * x

        return velocity

    x, sigma, below = at([0, 1, 2, 3], 8)
    velocity = torch.randn(SHAPE, requires_grad=True)
    term = consistency(
        velocity, x_BCFHW=x, sigma_B=sigma, below_B=below, teacher=network("teacher"), target=network("target")
    )
    term.per_sample_B.sum().backward()
    assert velocity.grad is not None and velocity.grad.abs().max() > 0 and scale.grad is None
    assert calls == [("teacher", False), ("target", False)]


class Numbers:
    """Integers in turn, whatever they are for."""

    def integers(self, *what: int | str, high: int) -> Tensor:
        return torch.arange(4) % high


def test_levels_are_those_of_the_grid_and_the_last_step_ends_at_zero() -> None:
    law = OnGrid(4, SHIFT)
    levels = law.draw(Numbers(), Stages((), ()))  # type: ignore[arg-type]
    grid = many_step_sigmas(4, SHIFT).float()
    assert levels.sigma_B.tolist() == grid[:4].tolist() and levels.sigma_B[0] == 1 and levels.frame_stride == 1
    assert law.sigmas(levels.index_B + 1).tolist() == grid[1:].tolist()
    assert law.sigmas(levels.index_B + 3).tolist() == [grid[3].item(), 0, 0, 0]


def test_a_skip_beyond_the_grid_is_refused() -> None:
    with pytest.raises(ValueError, match="skip must be at most steps"):
        ConsistencyRecipe(steps=4, skip=5)


def test_training_in_closed_form_finds_the_discrete_fixed_point() -> None:
    """A student per level, linear in x, with itself as the target: what it converges to is the product of steps."""
    steps, teacher = 6, GaussianVelocity(1.0, 0.5)
    grid = many_step_sigmas(steps, SHIFT)
    weights = torch.zeros(steps, 2, requires_grad=True)  # v = a x + b per level
    optimizer = torch.optim.Adam([weights], lr=0.05)

    def student(x: Tensor, sigma: Tensor) -> Tensor:
        place = (grid[:-1][None] - sigma[:, None]).abs().argmin(1)
        slope, offset = (weights[place, i].view(-1, 1, 1, 1, 1) for i in range(2))
        return slope * x + offset

    generator = torch.Generator().manual_seed(0)
    for update in range(1500):
        optimizer.param_groups[0]["lr"] = 0.05 * (1 - update / 1500)
        index = torch.randint(steps, (32,), generator=generator)
        noise = [torch.randn(32, 1, 1, 2, 2, generator=generator) for _ in range(2)]
        x = add_noise(1 + 0.5 * noise[0], noise[1], grid[index])
        velocity = student(x, grid[index])
        term = consistency(
            velocity,
            x_BCFHW=x,
            sigma_B=grid[index],
            below_B=grid[index + 1],
            teacher=teacher,
            target=student,
            distance="square",
        )
        optimizer.zero_grad()
        term.per_sample_B.mean().backward()
        optimizer.step()
    x = torch.randn(SHAPE)
    found = x - student(x, torch.ones(4))
    torch.testing.assert_close(found, teacher.clean_by_euler(x, grid), rtol=0, atol=0.03)
