"""Fisher divergence against Gaussians: its gradient, where it goes, and where training with it ends."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from avd.flow import GuidedVelocity
from avd.objectives.distribution_matching import distribution_matching
from avd.objectives.fake_score import GuidedScore
from avd.objectives.fisher import sgmd, sid
from avd.types import LossTerm
from helpers.descent import descend
from helpers.gaussian import GaussianVelocity

SHAPE = (3, 2, 5, 2, 2)
REAL, FAKE = GaussianVelocity(1.0, 0.5), GaussianVelocity(-0.5, 0.8)


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def unguided(network: Callable[[Tensor, Tensor], Tensor]) -> GuidedScore:
    def answer(x: Tensor, sigma_B: Tensor) -> GuidedVelocity:
        velocity = network(x, sigma_B)
        return GuidedVelocity(velocity, velocity)

    return answer


def draw() -> dict[str, Tensor]:
    return {"sigma_B": torch.tensor([0.2, 0.6, 0.95]), "eps_BCFHW": torch.randn(SHAPE)}


def gradient(term: Callable[[Tensor], LossTerm], x: Tensor) -> Tensor:
    leaf = x.clone().requires_grad_()
    term(leaf).per_sample_B.sum().backward()
    assert leaf.grad is not None
    return leaf.grad


def slope(std: float, sigma_B: Tensor) -> Tensor:
    """k = d x0 / d x_sigma of a Gaussian's clean prediction, per sample."""
    s = sigma_B.view(-1, 1, 1, 1, 1)
    return (1 - s) * std**2 / ((1 - s) ** 2 * std**2 + s**2)


def test_for_gaussians_it_is_distribution_matching_times_what_the_fake_score_passes_on() -> None:
    x, how = torch.randn(SHAPE), draw()
    matched = gradient(
        lambda y: distribution_matching(y.float(), teacher=unguided(REAL), fake_score=FAKE, **how),  # type: ignore[arg-type]
        x,
    )
    found = gradient(lambda y: sgmd(y, teacher=unguided(REAL), fake_score=FAKE, residual=0.0, **how), x)  # type: ignore[arg-type]
    s = how["sigma_B"].view(-1, 1, 1, 1, 1)
    torch.testing.assert_close(found, matched * (1 - s) * slope(FAKE.std, how["sigma_B"]), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("form", [lambda *a, **k: sgmd(*a, residual=0.0, **k), sid], ids=["sgmd", "sid"])
def test_equal_scores_have_no_gradient(form: Callable[..., LossTerm]) -> None:
    how = draw()
    assert (
        gradient(lambda y: form(y, teacher=unguided(REAL), fake_score=REAL, **how), torch.randn(SHAPE)).abs().max()
        < 1e-12
    )


def test_the_residual_moves_a_sample_towards_where_the_fake_score_sees_it() -> None:
    x, how = torch.randn(SHAPE), draw()
    found = gradient(lambda y: sgmd(y, teacher=unguided(FAKE), fake_score=FAKE, residual=0.3, **how), x)  # type: ignore[arg-type]
    s = how["sigma_B"].view(-1, 1, 1, 1, 1)
    noisy = (1 - s) * x + s * how["eps_BCFHW"]
    seen = noisy - s * FAKE(noisy, how["sigma_B"])
    expected = -0.3 * (seen - x) / s * (1 - s) * slope(FAKE.std, how["sigma_B"]) / x[0].numel()
    torch.testing.assert_close(found, expected)


def test_sid_passes_through_both_networks() -> None:
    """Against the derivative written out for Gaussians, whose clean predictions are linear."""
    x, how, alpha = torch.randn(SHAPE), draw(), 0.7
    found = gradient(lambda y: sid(y, teacher=unguided(REAL), fake_score=FAKE, alpha=alpha, **how), x)  # type: ignore[arg-type]
    s = how["sigma_B"].view(-1, 1, 1, 1, 1)
    noisy = (1 - s) * x + s * how["eps_BCFHW"]
    real, fake = (noisy - s * network(noisy, how["sigma_B"]) for network in (REAL, FAKE))
    by_real, by_fake = ((1 - s) * slope(network.std, how["sigma_B"]) for network in (REAL, FAKE))
    norm = (x - real).abs().flatten(1).mean(1).view(-1, 1, 1, 1, 1)
    difference, change = real - fake, by_real - by_fake
    expected = change * ((real - x) - alpha * difference) + difference * ((by_real - 1) - alpha * change)
    torch.testing.assert_close(found, expected / norm / x[0].numel())


class Scaled(nn.Module):
    """A velocity with a parameter."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale, self.graded = nn.Parameter(torch.tensor(scale)), list[bool]()

    def forward(self, x: Tensor, sigma_B: Tensor) -> Tensor:
        self.graded.append(torch.is_grad_enabled() and x.requires_grad)
        return self.scale * x


@pytest.mark.parametrize(("form", "through_teacher"), [(sgmd, False), (sid, True)], ids=["sgmd", "sid"])
def test_gradient_reaches_only_the_sample(form: Callable[..., LossTerm], through_teacher: bool) -> None:
    teacher, fake = Scaled(0.7), Scaled(-0.2)
    found = gradient(lambda y: form(y, teacher=unguided(teacher), fake_score=fake, **draw()), torch.randn(SHAPE))
    assert found.abs().max() > 0
    assert teacher.scale.grad is None and fake.scale.grad is None
    assert teacher.graded == [through_teacher] and fake.graded == [True]


def test_the_value_is_the_divergence_less_the_residual() -> None:
    x, how = torch.randn(SHAPE, requires_grad=True), draw()
    term = sgmd(x, teacher=unguided(REAL), fake_score=FAKE, residual=0.1, **how)  # type: ignore[arg-type]
    s = how["sigma_B"].view(-1, 1, 1, 1, 1)
    noisy = (1 - s) * x.detach() + s * how["eps_BCFHW"]
    real, fake = (noisy - s * network(noisy, how["sigma_B"]) for network in (REAL, FAKE))
    norm_B = (x - real).abs().flatten(1).mean(1)
    expected = (fake - real).square().flatten(1).mean(1) / norm_B - 0.1 * ((fake - x).square() / s).flatten(1).mean(1)
    torch.testing.assert_close(term.per_sample_B, 0.5 * expected)


def narrowed(residual: float) -> float:
    """The spread, as a share of the teacher's, at which SGMD's gradient on the student's spread is zero on average.

    For many values per sample mean|x - x0_real| is its expectation. By bisection over levels uniform in .02 to .98.
    """
    s, real = torch.linspace(0.02, 0.98, 2001), REAL.std
    k_real = (1 - s) * real**2 / ((1 - s) ** 2 * real**2 + s**2)

    def pull(std: float) -> float:
        spread = (1 - s) ** 2 * std**2 + s**2
        k = (1 - s) * std**2 / spread
        distance = (std**2 * (1 - k_real * (1 - s)) ** 2 + (k_real * s) ** 2).sqrt() * math.sqrt(2 / math.pi)
        matching, contraction = (k - k_real) * (1 - s) * std / distance, residual * std * s / spread
        return float(((1 - s) * k * (matching + contraction)).mean())

    low, high = 0.5 * real, 1.5 * real
    for _ in range(40):
        low, high = ((low + high) / 2, high) if pull((low + high) / 2) < 0 else (low, (low + high) / 2)
    return low / real


@pytest.mark.parametrize(
    ("form", "share"),
    [
        (lambda x, **how: sgmd(x, residual=0.0, **how), 1.0),
        (lambda x, **how: sgmd(x, residual=0.1, **how), narrowed(0.1)),
        (sid, 1.0),
    ],
    ids=["sgmd without residual", "sgmd", "sid"],
)
def test_training_ends_at_the_teachers_gaussian_and_with_the_residual_at_a_narrower_one(
    form: Callable[..., LossTerm], share: float
) -> None:
    mean, std = descend(lambda x, fake, **how: form(x, teacher=unguided(REAL), fake_score=fake, **how))
    assert mean == pytest.approx(REAL.mean, abs=0.01)
    assert std == pytest.approx(share * REAL.std, rel=0.015)
    assert 0.92 < narrowed(0.1) < 0.94
