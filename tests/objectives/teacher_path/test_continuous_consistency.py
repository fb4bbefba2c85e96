"""Continuous-time consistency against Gaussians, whose paths are known, and against the paper's own form of it."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from avd.flow import GuidedVelocity, add_noise, guide
from avd.objectives.distribution_matching import distribution_matching
from avd.objectives.source import Stages
from avd.objectives.teacher_path.continuous_consistency import (
    ContinuousConsistency,
    ContinuousConsistencyRecipe,
    LogitNormal,
    central_difference,
    continuous_consistency,
)
from avd.objectives.term import Sample, Setting
from helpers.gaussian import GaussianVelocity

SHAPE = (4, 2, 3, 2, 2)
SIGMA = torch.tensor([0.2, 0.5, 0.8, 0.95], dtype=torch.float64)
TEACHER = GaussianVelocity(1.0, 0.5)
Network = Callable[[Tensor, Tensor], Tensor]


@pytest.fixture(autouse=True)
def double() -> object:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def column(sigma: Tensor) -> Tensor:
    return sigma.view(-1, 1, 1, 1, 1)


def noised() -> Tensor:
    return add_noise(1 + 0.5 * torch.randn(SHAPE), torch.randn(SHAPE), SIGMA)


def test_the_helper_leads_to_the_end_of_the_path() -> None:
    x = noised()
    torch.testing.assert_close(x - column(SIGMA) * TEACHER.to_clean(x, SIGMA), TEACHER.clean(x, SIGMA))


def exact(network: Network) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The total derivative by forward-mode differentiation."""
    return lambda x, sigma, direction: torch.func.jvp(network, (x, sigma), (direction, torch.ones_like(sigma)))[1]


def judge(student: Network, x: Tensor, tangent: object = None, **how: float) -> tuple[Tensor, Tensor]:
    """rms(g) of each sample, and the gradient of the sum of the losses on the student's velocity."""
    velocity = student(x, SIGMA).requires_grad_()
    term = continuous_consistency(
        velocity,
        x_BCFHW=x,
        sigma_B=SIGMA,
        teacher=TEACHER,
        tangent=tangent or exact(student),  # type: ignore[arg-type]
        **how,
    )
    (gradient,) = torch.autograd.grad(term.per_sample_B.sum(), velocity)
    return term.values["tangent_rms"], gradient


def test_the_consistency_model_of_the_exact_path_has_no_tangent() -> None:
    rms, gradient = judge(TEACHER.to_clean, noised())
    assert rms.max() < 1e-9 and gradient.abs().max() < 1e-9
    rms, gradient = judge(GaussianVelocity(1.0, 0.6).to_clean, noised())
    assert rms.min() > 1e-3 and gradient.abs().amax((1, 2, 3, 4)).min() > 1e-3


def test_a_central_difference_is_exact_to_second_order() -> None:
    optimum, x = TEACHER.to_clean, noised()
    rms = [judge(optimum, x, central_difference(optimum, h))[0] for h in (0.04, 0.02, 0.01)]
    for coarse, fine in pairwise(rms):
        assert (coarse / fine).tolist() == pytest.approx([4.0] * 4, rel=0.1)
    assert 1e-6 < rms[1].max() < 1e-2


@pytest.mark.parametrize("sigma", [0.0, 0.01, 0.5, 0.995, 1.0])
def test_where_levels_end_a_difference_is_divided_by_its_true_distance(sigma: float) -> None:
    """A velocity that is linear in both has the same difference over any distance, and is never called outside."""
    levels = []

    def linear(x: Tensor, level: Tensor) -> Tensor:
        levels.append(level)
        return 2 * x + 3 * column(level)

    x, direction, level = torch.randn(1, 1, 2, 1, 1), torch.randn(1, 1, 2, 1, 1), torch.tensor([sigma])
    torch.testing.assert_close(central_difference(linear, 0.02)(x, level, direction), 2 * direction + 3)
    assert len(levels) == 2 and all(0 <= each <= 1 for each in levels)


@pytest.mark.parametrize("too_much", [0.3, -0.3])
def test_off_the_optimum_every_sample_moves_by_its_unit_tangent(too_much: float) -> None:
    """A clean video that is d s too high at level s has the tangent d: its velocity must rise by d's sign, to scale."""
    optimum = TEACHER.to_clean
    rms, gradient = judge(lambda x, sigma: optimum(x, sigma) - too_much, noised())
    values = gradient[0].numel()
    assert rms.tolist() == pytest.approx([abs(too_much)] * 4)
    unit = too_much / (abs(too_much) + 0.1 / values**0.5)
    n = (SIGMA.square() + (1 - SIGMA).square()).sqrt()
    torch.testing.assert_close(gradient, (-column(n) * unit / values).expand(SHAPE))


def test_the_size_of_a_tangent_does_not_matter_until_it_is_small() -> None:
    x, aim = noised(), torch.randn(SHAPE)

    def gradient(scale: float) -> Tensor:
        velocity = torch.zeros(SHAPE, requires_grad=True)
        still = lambda *_: torch.zeros(SHAPE)  # noqa: E731
        term = continuous_consistency(velocity, x_BCFHW=x, sigma_B=SIGMA, teacher=lambda *_: scale * aim, tangent=still)
        return torch.autograd.grad(term.per_sample_B.sum(), velocity)[0]

    torch.testing.assert_close(gradient(1e6), gradient(1e3), rtol=1e-3, atol=0)
    assert gradient(1e-6).norm() < 1e-3 * gradient(1e3).norm()


def test_a_cold_start_distils_the_velocity() -> None:
    student, x = GaussianVelocity(0.0, 0.8).to_clean, noised()
    _, gradient = judge(student, x, warmth=0.0)
    regression = (student(x, SIGMA) - TEACHER(x, SIGMA)).flatten(1)
    assert torch.cosine_similarity(gradient.flatten(1), regression).tolist() == pytest.approx([1.0] * 4)


@pytest.mark.parametrize("warmth", [0.0, 1.0])
def test_the_gradient_is_that_of_the_paper_in_trigflow(warmth: float) -> None:
    """sCM, Eq. 6 and Alg. 1, in x_t = cos(t) x0 + sin(t) eps, whose network F has f = cos(t) x_t - sin(t) F.

    Between r = 0 and 1 the two forms mix the same two ends in other shares.
    """
    student, x = GaussianVelocity(0.0, 0.8).to_clean, noised()
    t = torch.atan(SIGMA / (1 - SIGMA))

    def trig(velocity: Network) -> Network:
        def network(x_t: Tensor, t: Tensor) -> Tensor:
            sigma, n = torch.sin(t) / (torch.sin(t) + torch.cos(t)), column(1 / (torch.sin(t) + torch.cos(t)))
            clean = n * x_t - column(sigma) * velocity(n * x_t, sigma)
            return (torch.cos(column(t)) * x_t - clean) / torch.sin(column(t))

        return network

    n = column((SIGMA.square() + (1 - SIGMA).square()).sqrt())
    x_t, cos, sin = x / n, torch.cos(column(t)), torch.sin(column(t))
    path = trig(TEACHER)(x_t, t)
    found, derivative = torch.func.jvp(trig(student), (x_t, t), (path, torch.ones_like(t)))
    g = -cos.square() * (found - path) - warmth * cos * sin * (x_t + derivative)
    unit = g / (g.flatten(1).norm(dim=1).view(-1, 1, 1, 1, 1) + 1e-9)
    velocity = student(x, SIGMA).requires_grad_()
    prediction = found - n * velocity.detach() + n * velocity  # F is n v, and what does not depend on v
    loss = (prediction - found - unit).square().sum()
    (expected,) = torch.autograd.grad(loss, velocity)
    _, gradient = judge(student, x, warmth=warmth)
    assert torch.cosine_similarity(gradient.flatten(1), expected.flatten(1)).tolist() == pytest.approx([1.0] * 4)
    values = gradient[0].numel()
    size = expected.flatten(1).norm(dim=1) / (2 * values**0.5)  # half of a mean for a sum; unit rms for unit norm
    torch.testing.assert_close(gradient.flatten(1).norm(dim=1), size, rtol=0.1, atol=0)  # up to c


def test_gradient_reaches_only_the_velocity_and_no_network_keeps_a_graph() -> None:
    scale, calls = torch.tensor(0.5, requires_grad=True), []

    def network(name: str) -> Network:
        def velocity(x: Tensor, sigma: Tensor) -> Tensor:
            calls.append((name, torch.is_grad_enabled()))
            return scale * x

        return velocity

    velocity = torch.randn(SHAPE, requires_grad=True)
    tangent = central_difference(network("student"), 0.02)
    term = continuous_consistency(
        velocity, x_BCFHW=noised(), sigma_B=SIGMA, teacher=network("teacher"), tangent=tangent
    )
    term.per_sample_B.sum().backward()
    assert velocity.grad is not None and velocity.grad.abs().max() > 0 and scale.grad is None
    assert calls == [("teacher", False), ("student", False), ("student", False)]


class Numbers:
    """Given numbers, whatever they are for."""

    def __init__(self, *values: float) -> None:
        self.values = torch.tensor(values)

    def normal(self, *what: int | str, shape: tuple[int, ...]) -> Tensor:
        assert shape == ()
        return self.values


def test_levels_have_a_normal_logit_and_the_index_of_their_band() -> None:
    levels = LogitNormal(0.7, 1.6).draw(Numbers(-2.0, 0.0, 0.5, 9.0), Stages((), ()))  # type: ignore[arg-type]
    torch.testing.assert_close(levels.sigma_B.logit(), torch.tensor([-2.5, 0.7, 1.5, 15.1]), rtol=1e-5, atol=0)
    assert levels.index_B.tolist() == [0, 3, 4, 4] and levels.frame_stride == 1


def made(warmup: int) -> ContinuousConsistency:
    return ContinuousConsistency(
        ContinuousConsistencyRecipe(guidance=1.0, warmup=warmup), Setting((1.0,), lambda count: torch.zeros(0))
    )


def a_sample(student: Network, x: Tensor) -> Sample:
    networks = SimpleNamespace(
        teacher=lambda x, sigma, guidance: GuidedVelocity(TEACHER(x, sigma), TEACHER(x, sigma)), student=student
    )
    index = (SIGMA * 5).long()
    velocity = student(x, SIGMA).requires_grad_()
    return Sample(velocity, None, networks, None, None, x, SIGMA, index)  # type: ignore[arg-type]


def test_the_derivative_comes_in_over_the_warm_up_and_a_resumed_run_has_as_much_of_it() -> None:
    student, x = GaussianVelocity(0.0, 0.8).to_clean, noised()
    term, found = made(warmup=2), []
    for _ in range(4):
        resumed = made(warmup=2)
        resumed.load_state_dict(term.state_dict())
        found.append(term(a_sample(student, x)).values["tangent_rms"])
        assert torch.equal(resumed(a_sample(student, x)).values["tangent_rms"], found[-1])
        term.commit()
    difference = central_difference(student, 0.02)
    expected = [judge(student, x, difference, warmth=warmth)[0] for warmth in (0.0, 0.5, 1.0, 1.0)]
    torch.testing.assert_close(torch.stack(found), torch.stack(expected))
    assert not torch.allclose(expected[0], expected[1])
    at_once = made(warmup=0)(a_sample(student, x))
    torch.testing.assert_close(at_once.values["tangent_rms"], expected[2])


def test_the_usual_tangent_is_logged_by_noise_level() -> None:
    student, x = GaussianVelocity(0.0, 0.8).to_clean, noised()
    term = made(warmup=0)
    first = term(a_sample(student, x))
    assert set(first.metrics) == {"tangent_rms"}  # nothing is usual yet
    term.commit()
    rms = first.values["tangent_rms"].tolist()  # at levels 0.2, 0.5, 0.8 and 0.95 of five bands
    expected = {"tangent_rms_1": rms[0], "tangent_rms_2": rms[1], "tangent_rms_4": (rms[2] + rms[3]) / 2}
    later = term(a_sample(student, x)).metrics
    assert {name: value for name, value in later.items() if name != "tangent_rms"} == pytest.approx(expected)


class Fitted:
    """The consistency model of a Gaussian whose mean and standard deviation are trained."""

    def __init__(self, mean: float, std: float) -> None:
        self.parameters = torch.tensor([mean, std], requires_grad=True)

    @property
    def mean_and_std(self) -> list[float]:
        return self.parameters.tolist()

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        return GaussianVelocity(*self.parameters).to_clean(x, sigma)  # type: ignore[arg-type]


def train(student: Fitted, teacher: Network, matching: float, updates: int = 400) -> None:
    """Consistency, and distribution matching of this weight, on the samples of one step and with the exact fake score,
    once the derivative is all there."""
    optimizer = torch.optim.Adam([student.parameters], lr=0.05, betas=(0.0, 0.999))
    generator = torch.Generator().manual_seed(0)
    for update in range(updates):
        optimizer.param_groups[0]["lr"] = 0.05 * (1 - update / updates)
        x0, eps, start, noise = (torch.randn(32, 1, 1, 2, 2, generator=generator) for _ in range(4))
        sigma = torch.sigmoid(0.7 + 1.6 * torch.randn(32, generator=generator))
        x = add_noise(1 + 0.5 * x0, eps, sigma)
        loss = continuous_consistency(
            student(x, sigma),
            x_BCFHW=x,
            sigma_B=sigma,
            teacher=teacher,
            tangent=central_difference(student, 0.02),
            warmth=min(1.0, update / 50),
        ).per_sample_B.mean()
        if matching and update >= 50:
            term = distribution_matching(
                start - student(start, torch.ones(32)),
                teacher=lambda x, sigma: GuidedVelocity(teacher(x, sigma), teacher(x, sigma)),
                fake_score=GaussianVelocity(*student.mean_and_std),
                sigma_B=0.02 + 0.96 * torch.rand(32, generator=generator),
                eps_BCFHW=noise,
            )
            loss = loss + matching * term.per_sample_B.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@pytest.mark.parametrize("matching", [0.0, 14.0])
def test_training_in_closed_form_finds_the_end_of_the_guided_teachers_path(matching: float) -> None:
    """Alone and with distribution matching, which have one optimum: guidance of two Gaussians is a Gaussian."""
    cond, uncond = GaussianVelocity(1.0, 0.5), GaussianVelocity(0.8, 0.5)
    student = Fitted(-0.5, 1.0)
    train(student, lambda x, sigma: guide(cond(x, sigma), uncond(x, sigma), 5.0), matching)
    assert student.mean_and_std == pytest.approx([0.8 + 5.0 * 0.2, 0.5], abs=0.02)
