"""The flow convention against closed forms and against diffusers on the same noise levels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from avd import flow
from helpers.gaussian import GaussianVelocity

SIGMAS = st.floats(0.01, 1.0)
SHIFTS = st.floats(0.2, 20.0)


def pair(shape: tuple[int, ...] = (3, 4, 5, 2, 2)) -> tuple[Tensor, Tensor]:
    """Clean latents and noise, in float64."""
    g = torch.Generator().manual_seed(1)
    return torch.randn(shape, generator=g, dtype=torch.float64), torch.randn(shape, generator=g, dtype=torch.float64)


def test_noise_is_at_sigma_one() -> None:
    x0, eps = pair()
    torch.testing.assert_close(flow.add_noise(x0, eps, 0.0), x0)
    torch.testing.assert_close(flow.add_noise(x0, eps, 1.0), eps)
    torch.testing.assert_close(flow.add_noise(x0, eps, 0.25), 0.75 * x0 + 0.25 * eps)


def kernel(p: float, q: float) -> tuple[float, float]:
    """What `renoise` keeps of x_p, and how much noise it adds."""
    one, zero = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    return flow.renoise(one, p, q, zero).item(), flow.renoise(zero, p, q, one).item()


@given(SIGMAS, SIGMAS)
def test_renoising_has_the_moments_of_noising_the_clean_latents(a: float, b: float) -> None:
    p, q = min(a, b) * 0.99, max(a, b)
    keep, added = kernel(p, q)
    assert keep * (1 - p) == pytest.approx(1 - q, abs=1e-9)  # of x0
    assert (keep * p) ** 2 + added**2 == pytest.approx(q**2)  # variance of the noise
    naive = (q - p) / (1 - p)  # as a linear path from x_p would have it
    assert (keep * p) ** 2 + naive**2 < q**2 * (1 - 1e-4) or q - p < 0.02 or q > 0.98


@given(st.lists(SIGMAS, min_size=3, max_size=3))
def test_renoising_in_two_steps_is_renoising_in_one(levels: list[float]) -> None:
    p, q, r = (0.99 * level for level in sorted(levels))
    (k1, b1), (k2, b2), (k, b) = kernel(p, q), kernel(q, r), kernel(p, r)
    assert k1 * k2 == pytest.approx(k)
    assert (k2 * b1) ** 2 + b2**2 == pytest.approx(b**2, abs=1e-12)


def test_renoising_ends_at_the_ends() -> None:
    x, eps = pair()
    levels = torch.tensor([0.0, 0.4, 1.0], dtype=torch.float64)
    torch.testing.assert_close(flow.renoise(x, 0.0, levels, eps), flow.add_noise(x, eps, levels), rtol=0, atol=0)
    below = torch.tensor([0.0, 0.4, 0.99], dtype=torch.float64)
    torch.testing.assert_close(flow.renoise(x, below, below, eps), x, rtol=0, atol=1e-7)
    torch.testing.assert_close(flow.renoise(x, below, 1.0, eps), eps)


@pytest.mark.parametrize(("p", "q"), [(0.3, 0.31), (0.3, 0.8), (0.757, 0.9), (0.757, 1.0)])
def test_denoising_gives_the_mean_between_levels(p: float, q: float) -> None:
    """For Gaussian data x_p and x_q are jointly so: the mean of x_p is a line of slope k S(p)^2 / S(q)^2."""
    data, x = GaussianVelocity(0.7, 0.5), torch.randn(2, 3, 2, 2, 2, dtype=torch.float64)
    variance = {s: (1 - s) ** 2 * 0.5**2 + s**2 for s in (p, q)}
    slope = (1 - q) / (1 - p) * variance[p] / variance[q]
    expected = (1 - p) * 0.7 + slope * (x - (1 - q) * 0.7)
    level = torch.full((2,), q, dtype=torch.float64)
    torch.testing.assert_close(flow.denoise(x, data(x, level), q, p), expected)


def test_denoising_ends_at_the_ends() -> None:
    x, v = pair()
    levels = torch.tensor([0.02, 0.4, 1.0])
    assert torch.equal(flow.denoise(x, v, levels, 0.0), flow.x0_from_velocity(x, v, levels))
    torch.testing.assert_close(flow.denoise(x, v, 0.4, 0.4), x)


@given(SIGMAS)
def test_velocity_is_the_derivative_in_sigma(sigma: float) -> None:
    x0, eps = pair()
    h = 1e-6
    slope = (flow.add_noise(x0, eps, sigma + h) - flow.add_noise(x0, eps, sigma - h)) / (2 * h)
    torch.testing.assert_close(flow.velocity_of(x0, eps), slope, rtol=0, atol=1e-8)


@given(st.lists(SIGMAS, min_size=3, max_size=3))
def test_x0_comes_back_from_the_velocity(levels: list[float]) -> None:
    x0, eps = pair()
    sigma_B = torch.tensor(levels, dtype=torch.float64)
    x, v = flow.add_noise(x0, eps, sigma_B), flow.velocity_of(x0, eps)
    torch.testing.assert_close(flow.x0_from_velocity(x, v, sigma_B), x0)


def test_each_sample_has_its_own_noise_level() -> None:
    x0, eps = pair()
    sigma_B = torch.tensor([0.1, 0.5, 1.0])
    together = flow.add_noise(x0, eps, sigma_B)
    for i, sigma in enumerate(sigma_B):
        torch.testing.assert_close(together[i : i + 1], flow.add_noise(x0[i : i + 1], eps[i : i + 1], sigma))


def test_half_precision_is_computed_in_float32() -> None:
    x0, eps = (t.bfloat16() for t in pair())
    x = flow.add_noise(x0, eps, 0.3)
    assert x.dtype == flow.velocity_of(x0, eps).dtype == flow.x0_from_velocity(x0, eps, 0.3).dtype == torch.float32
    torch.testing.assert_close(x, 0.7 * x0.float() + 0.3 * eps.float())


def test_guidance_scale_one_is_the_conditional_branch_and_zero_the_unconditional() -> None:
    cond, uncond = pair()
    torch.testing.assert_close(flow.guide(cond, uncond, 1.0), cond)
    torch.testing.assert_close(flow.guide(cond, uncond, 0.0), uncond)
    torch.testing.assert_close(flow.guide(cond, uncond, 6.0), cond + 5 * (cond - uncond))


@given(SIGMAS, SHIFTS, SHIFTS)
def test_shifts_compose_by_multiplication(sigma: float, a: float, b: float) -> None:
    s = torch.tensor([sigma], dtype=torch.float64)
    torch.testing.assert_close(flow.shift_sigma(flow.shift_sigma(s, a), b), flow.shift_sigma(s, a * b))


@given(SHIFTS)
def test_a_shift_multiplies_the_odds_of_noise_and_keeps_the_ends(shift: float) -> None:
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(flow.shift_sigma(ends, shift), ends)
    s = torch.linspace(0.05, 0.95, 7, dtype=torch.float64)
    moved = flow.shift_sigma(s, shift)
    torch.testing.assert_close(moved / (1 - moved), shift * s / (1 - s))


@pytest.mark.parametrize("shift", [0.0, -3.0])
def test_a_shift_that_is_not_positive_is_refused(shift: float) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        flow.shift_sigma(torch.ones(1), shift)


@given(st.integers(1, 60), SHIFTS)
def test_the_many_step_grid_falls_from_one_to_zero(steps: int, shift: float) -> None:
    sigmas = flow.many_step_sigmas(steps, shift)
    assert len(sigmas) == steps + 1 and sigmas[0].item() == pytest.approx(1.0, abs=1e-12) and sigmas[-1] == 0.0
    assert (sigmas.diff() < 0).all()


def test_the_grid_without_shift_is_uniform() -> None:
    torch.testing.assert_close(flow.many_step_sigmas(4, 1.0), torch.tensor([1, 0.75, 0.5, 0.25, 0]).double())


def test_no_steps_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        flow.many_step_sigmas(0, 5.0)


def test_few_step_sigmas_are_thousandths() -> None:
    assert flow.few_step_sigmas((1000, 900, 757, 522)) == (1.0, 0.9, 0.757, 0.522)
    assert flow.few_step_sigmas((1000,)) == (1.0,)


@pytest.mark.parametrize("timesteps", [(), (1001.0,), (500, 0), (900, -1), (500, 900), (900, 900), (float("nan"),)])
def test_bad_student_timesteps_are_refused(timesteps: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="must fall strictly"):
        flow.few_step_sigmas(timesteps)


@pytest.mark.parametrize("steps", [1, 4, 50])
def test_euler_is_exact_on_straight_paths(steps: int) -> None:
    x0, eps = pair()
    found = flow.integrate(lambda x, sigma: flow.velocity_of(x0, eps), eps, flow.many_step_sigmas(steps, 5.0))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, x0.float(), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("steps", "shift"), [(1, 1.0), (4, 5.0), (50, 3.0)])
def test_the_sampler_is_diffusers_flow_match_euler_on_the_same_noise_levels(steps: int, shift: float) -> None:
    """Both shift a uniform grid; a curved velocity field, so that every step counts."""

    def velocity(x: Tensor, sigma_B: Tensor) -> Tensor:
        return torch.sin(3 * x) + x * sigma_B.view(-1, 1, 1, 1, 1)

    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(sigmas=np.linspace(1, 0, steps + 1)[:-1].tolist())
    sigmas = flow.many_step_sigmas(steps, shift)
    torch.testing.assert_close(scheduler.sigmas, sigmas.float(), rtol=0, atol=1e-6)
    torch.testing.assert_close(scheduler.timesteps, flow.TIMESTEPS * sigmas[:-1].float(), rtol=0, atol=1e-3)

    noise = pair()[1].float()
    x = noise
    for t in scheduler.timesteps:
        x = scheduler.step(velocity(x, (t / 1000).expand(len(x))), t, x).prev_sample
    torch.testing.assert_close(flow.integrate(velocity, noise, sigmas), x, rtol=0, atol=1e-5)
