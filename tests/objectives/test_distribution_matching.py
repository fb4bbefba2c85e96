"""Distribution matching against DMD Eq. 7 and 8, and against Gaussians whose scores are known."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from avd.engine.randomness import UpdateRandom
from avd.flow import GuidedVelocity, denoise, guide, renoise
from avd.objectives.distribution_matching import TERM, DistributionMatchingRecipe, distribution_matching
from avd.objectives.fake_score import GuidedScore
from avd.objectives.term import Sample, Setting
from avd.types import LossTerm
from helpers.descent import descend
from helpers.gaussian import GaussianVelocity

SHAPE = (3, 2, 5, 2, 2)


class Affine(nn.Module):
    """A velocity with parameters: scale * x + shift * sigma."""

    def __init__(self, scale: float, shift: float) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.tensor(scale)), nn.Parameter(torch.tensor(shift))
        self.calls = 0

    def forward(self, x: Tensor, sigma_B: Tensor) -> Tensor:
        self.calls += 1
        return self.scale * x + self.shift * sigma_B.view(-1, 1, 1, 1, 1)


def unguided(network: Callable[[Tensor, Tensor], Tensor]) -> GuidedScore:
    """A teacher without guidance."""

    def answer(x: Tensor, sigma_B: Tensor) -> GuidedVelocity:
        velocity = network(x, sigma_B)
        return GuidedVelocity(velocity, velocity)

    return answer


def draw() -> tuple[Tensor, Tensor, Tensor]:
    """Samples, noise, noise levels."""
    return torch.randn(SHAPE), torch.randn(SHAPE), torch.tensor([0.2, 0.6, 1.0])


def reference_gradient(x: Tensor, eps: Tensor, sigma: float, teacher: Affine, fake: Affine) -> Tensor:
    """DMD Eq. 7 and 8 for one sample, before the mean over its values."""
    noisy = (1 - sigma) * x + sigma * eps
    real = noisy - sigma * (teacher.scale * noisy + teacher.shift * sigma)
    imitated = noisy - sigma * (fake.scale * noisy + fake.shift * sigma)
    return ((imitated - real) / (x - real).abs().mean()).detach()


def test_value_and_gradient_match_the_paper() -> None:
    x, eps, sigma = draw()
    x.requires_grad_()
    teacher, fake = Affine(0.7, 0.3), Affine(-0.2, 0.1)
    term = distribution_matching(x, teacher=unguided(teacher), fake_score=fake, sigma_B=sigma, eps_BCFHW=eps)
    expected = torch.stack([reference_gradient(x[i], eps[i], sigma[i].item(), teacher, fake) for i in range(len(x))])
    torch.testing.assert_close(term.per_sample_B, 0.5 * expected.square().flatten(1).mean(1))
    term.per_sample_B.sum().backward()
    torch.testing.assert_close(x.grad, expected / x[0].numel())


def test_gradient_reaches_only_the_sample() -> None:
    x, eps, sigma = draw()
    x.requires_grad_()
    teacher, fake = Affine(0.7, 0.3), Affine(-0.2, 0.1)
    term = distribution_matching(x, teacher=unguided(teacher), fake_score=fake, sigma_B=sigma, eps_BCFHW=eps)
    term.per_sample_B.mean().backward()
    assert x.grad is not None and x.grad.abs().sum() > 0
    assert all(p.grad is None for network in (teacher, fake) for p in network.parameters())
    assert teacher.calls == fake.calls == 1


def test_a_sample_is_normalised_by_itself_alone() -> None:
    x, eps, sigma = draw()
    networks = {"teacher": unguided(Affine(0.7, 0.3)), "fake_score": Affine(-0.2, 0.1)}
    term = distribution_matching(x, **networks, sigma_B=sigma, eps_BCFHW=eps)
    x[1:] *= 100
    other = distribution_matching(x, **networks, sigma_B=sigma, eps_BCFHW=eps)
    torch.testing.assert_close(other.per_sample_B[0], term.per_sample_B[0])


def test_no_difference_of_scores_is_no_loss() -> None:
    x, eps, sigma = draw()
    x.requires_grad_()
    network = Affine(0.7, 0.3)
    term = distribution_matching(x, teacher=unguided(network), fake_score=network, sigma_B=sigma, eps_BCFHW=eps)
    term.per_sample_B.sum().backward()
    assert term.per_sample_B.abs().max() == 0 and x.grad is not None and x.grad.abs().max() == 0


def test_a_perfect_prediction_does_not_divide_by_zero() -> None:
    """At the teacher's own mean with no spread, the norm is 0."""
    x, eps, sigma = torch.zeros(SHAPE), torch.zeros(SHAPE), torch.full((3,), 0.5)
    term = distribution_matching(
        x, teacher=unguided(GaussianVelocity(0, 1)), fake_score=GaussianVelocity(0, 2), sigma_B=sigma, eps_BCFHW=eps
    )
    assert term.per_sample_B.isfinite().all()


def mean_squares(gradient: Tensor) -> Tensor:
    return gradient.square().flatten(1).mean(1)


@pytest.mark.parametrize("scale", [0.0, 1.0, 3.5])
def test_the_gradient_is_the_unguided_one_and_guidance_s_part(scale: float) -> None:
    """By DMD Eq. 7 with and without guidance, both normalised by the guided teacher's distance."""
    x, eps, sigma = draw()
    conditional, unconditional, fake = Affine(0.7, 0.3), Affine(0.1, -0.2), Affine(-0.2, 0.1)

    def teacher(noisy: Tensor, sigma_B: Tensor) -> GuidedVelocity:
        cond = conditional(noisy, sigma_B)
        return GuidedVelocity(guide(cond, unconditional(noisy, sigma_B), scale), cond)

    x.requires_grad_()
    term = distribution_matching(x, teacher=teacher, fake_score=fake, sigma_B=sigma, eps_BCFHW=eps)
    term.per_sample_B.sum().backward()
    column = sigma.view(-1, 1, 1, 1, 1)
    with torch.no_grad():
        noisy = (1 - column) * x + column * eps
        of_cond, of_uncond, of_fake = (noisy - column * net(noisy, sigma) for net in (conditional, unconditional, fake))
        norm = (x - of_uncond - scale * (of_cond - of_uncond)).abs().mean((1, 2, 3, 4), keepdim=True)
        without, guidance = (of_fake - of_cond) / norm, (scale - 1) * (of_uncond - of_cond) / norm
    assert x.grad is not None
    torch.testing.assert_close(x.grad * x[0].numel(), without + guidance)
    parts = term.gradient_parts
    assert parts.keys() == {"distribution_matching_unguided", "distribution_matching_guidance"}
    torch.testing.assert_close(parts["distribution_matching_unguided"], mean_squares(without))
    torch.testing.assert_close(parts["distribution_matching_guidance"], mean_squares(guidance))
    assert bool((parts["distribution_matching_guidance"] < 1e-12).all()) == (scale == 1)


def test_gradient_is_the_difference_of_scores_for_gaussians() -> None:
    """x0 = (x + sigma^2 score) / (1 - sigma), so g * norm = sigma^2 / (1 - sigma) (score_fake - score_real)."""
    x, eps = torch.randn(SHAPE), torch.randn(SHAPE)
    sigma = 0.4
    real, fake = (1.5, 0.5), (-0.5, 0.8)
    x.requires_grad_()
    term = distribution_matching(
        x,
        teacher=unguided(GaussianVelocity(*real)),
        fake_score=GaussianVelocity(*fake),
        sigma_B=torch.full((3,), sigma),
        eps_BCFHW=eps,
    )
    term.per_sample_B.sum().backward()
    noisy = ((1 - sigma) * x + sigma * eps).detach()

    def score(mean: float, std: float) -> Tensor:
        return -(noisy - (1 - sigma) * mean) / ((1 - sigma) ** 2 * std**2 + sigma**2)

    x0_real = (noisy + sigma**2 * score(*real)) / (1 - sigma)
    norm = (x.detach() - x0_real).abs().flatten(1).mean(1).view(-1, 1, 1, 1, 1)
    expected = sigma**2 / (1 - sigma) * (score(*fake) - score(*real)) / norm / x[0].numel()
    torch.testing.assert_close(x.grad, expected, rtol=1e-4, atol=1e-7)


def test_descent_moves_samples_to_the_teachers_distribution() -> None:
    """With the optimal fake score of the current samples, their mean ends at the teacher's."""
    g = torch.Generator().manual_seed(0)
    offset = torch.tensor(-2.0, requires_grad=True)
    optimizer = torch.optim.SGD([offset], lr=0.05)
    for _ in range(150):
        x = offset + 0.5 * torch.randn(16, 2, 3, 2, 2, generator=g)
        term = distribution_matching(
            x,
            teacher=unguided(GaussianVelocity(1.0, 0.5)),
            fake_score=GaussianVelocity(offset.item(), 0.5),
            sigma_B=1 - 0.98 * torch.rand(16, generator=g),
            eps_BCFHW=torch.randn(x.shape, generator=g),
        )
        optimizer.zero_grad()
        term.per_sample_B.mean().backward()
        optimizer.step()
    assert abs(offset.item() - 1.0) < 0.05


# -- real clips shown to the teacher ------------------------------------------------------------------------------


def test_a_sample_shown_as_its_own_clip_is_distribution_matching() -> None:
    x, eps, sigma = draw()
    how = {"teacher": unguided(Affine(0.7, 0.3)), "fake_score": Affine(-0.2, 0.1), "sigma_B": sigma, "eps_BCFHW": eps}
    plain, shown = distribution_matching(x, **how), distribution_matching(x, **how, clip_BCFHW=x.clone())
    assert torch.equal(plain.per_sample_B, shown.per_sample_B) and plain.metrics == shown.metrics


def test_the_teacher_is_asked_about_the_clip_and_the_fake_score_about_the_sample() -> None:
    (x, eps, sigma), clip = draw(), torch.randn(SHAPE)
    x.requires_grad_()
    teacher, fake = Affine(0.7, 0.3), Affine(-0.2, 0.1)
    term = distribution_matching(
        x, teacher=unguided(teacher), fake_score=fake, sigma_B=sigma, eps_BCFHW=eps, clip_BCFHW=clip
    )
    term.per_sample_B.sum().backward()
    s = sigma.view(-1, 1, 1, 1, 1)
    with torch.no_grad():
        noisy, shown = (1 - s) * x + s * eps, (1 - s) * clip + s * eps
        imitated, real = noisy - s * fake(noisy, sigma), shown - s * teacher(shown, sigma)
        norm = (x - real).abs().mean((1, 2, 3, 4), keepdim=True)
    torch.testing.assert_close(x.grad, (imitated - real) / norm / x[0].numel())
    torch.testing.assert_close(term.notes["x0_fake"], imitated)
    torch.testing.assert_close(term.notes["x0_teacher"], real)


def narrowed(share: float, real_std: float) -> float:
    """The spread at which the pull on it is 0 where a share of updates shows independent real clips of that spread.

    For many values per sample mean|x - x0_real| is its expectation. By bisection over levels uniform in .02 to .98.
    """
    s = torch.linspace(0.02, 0.98, 2001, dtype=torch.float64)
    k_real = (1 - s) * real_std**2 / ((1 - s) ** 2 * real_std**2 + s**2)
    seen = k_real**2 * ((1 - s) ** 2 * real_std**2 + s**2)  # variance of what the teacher says of a real clip

    def pull(std: float) -> float:
        k = (1 - s) * std**2 / ((1 - s) ** 2 * std**2 + s**2)
        own = (std**2 * (1 - k_real * (1 - s)) ** 2 + (k_real * s) ** 2).sqrt() * math.sqrt(2 / math.pi)
        other = (std**2 + seen).sqrt() * math.sqrt(2 / math.pi)
        return float(((1 - share) * (k - k_real) * (1 - s) * std / own + share * k * (1 - s) * std / other).mean())

    low, high = 0.05 * real_std, 1.5 * real_std
    for _ in range(40):
        low, high = ((low + high) / 2, high) if pull((low + high) / 2) < 0 else (low, (low + high) / 2)
    return low


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_real_clips_that_say_nothing_of_the_sample_narrow_what_it_learns(share: float) -> None:
    """The bias is the method's: the teacher's answer about an independent clip moves every sample to the mean.

    Here a share of each batch is shown clips, which is a share of the updates on average.
    """
    real, g = GaussianVelocity(1.0, 0.5), torch.Generator().manual_seed(1)

    def loss(x: Tensor, fake: GaussianVelocity, **how: Tensor) -> LossTerm:
        clip = x.detach().clone()
        count = round(share * len(x))
        clip[:count] = 1.0 + 0.5 * torch.randn(clip[:count].shape, generator=g)
        return distribution_matching(x, teacher=unguided(real), fake_score=fake, clip_BCFHW=clip, **how)  # type: ignore[arg-type]

    mean, std = descend(loss)
    assert mean == pytest.approx(real.mean, abs=0.02)
    assert std == pytest.approx(narrowed(share, real.std), rel=0.04)
    assert narrowed(0.0, 0.5) == pytest.approx(0.5) and 0.5 < narrowed(0.5, 0.5) / 0.5 < 0.7


class Asked:
    """Networks that say nothing, and the largest value that the teacher was shown."""

    def teacher(self, x: Tensor, sigma_B: Tensor, guidance: float) -> GuidedVelocity:
        self.largest = x.max().item()
        return GuidedVelocity(x, x)

    def auxiliary(self, name: str, x: Tensor, sigma_B: Tensor) -> Tensor:
        return x


def test_one_coin_decides_for_all_samples_of_an_update_whether_real_clips_are_shown() -> None:
    term = TERM.make(DistributionMatchingRecipe(real=0.5), Setting(sigmas=(1.0, 0.5), real_latents=torch.zeros))

    def shown(update: int, rows: slice) -> bool:
        random, networks = UpdateRandom(0, update, range(4)).part(rows), Asked()
        x = torch.zeros(len(random.samples), *SHAPE[1:])
        term(Sample(x, random, networks, x0_BCFHW=x + 1e4))  # type: ignore[arg-type]
        return networks.largest > 100

    turns = [shown(update, slice(0, 1)) for update in range(60)]
    assert turns == [shown(update, slice(1, 4)) for update in range(60)]
    assert 18 <= sum(turns) <= 42


# -- samples of an expert, which are noisy ---------------------------------------------------------------------------


P = 0.757


def gaussian_samples(mean: float, std: float, count: int = 8) -> Tensor:
    """Samples at level `P` of Gaussian data, float64."""
    generator = torch.Generator().manual_seed(0)
    clean, eps = torch.randn(2, count, 2, 5, 2, 2, generator=generator, dtype=torch.float64)
    return (1 - P) * (mean + std * clean) + P * eps


@pytest.mark.parametrize("sigma", [0.8, 0.95, 1.0])
def test_an_experts_gradient_is_zero_at_equality_and_leads_to_the_teacher_off_it(sigma: float) -> None:
    x, level = gaussian_samples(0.7, 0.5).requires_grad_(), torch.full((8,), sigma, dtype=torch.float64)
    eps, teacher = torch.randn(x.shape, dtype=torch.float64), GaussianVelocity(0.7, 0.5)

    def gradient(mean: float) -> Tensor:
        """For a student of this mean, which its fake score knows."""
        score = GaussianVelocity(mean, 0.5)
        how = {"teacher": unguided(teacher), "fake_score": score, "sigma_B": level, "eps_BCFHW": eps, "end": P}
        term = distribution_matching(x, **how)  # type: ignore[arg-type]
        return torch.autograd.grad(term.per_sample_B.sum(), x)[0] * x[0].numel()

    assert gradient(0.7).abs().max() < 1e-5
    # means of x_p given x_sigma differ by (1 - p) dm (1 - (k S(p) / S(sigma))^2), wherever x_sigma is
    keep = (1 - sigma) / (1 - P)
    variance_p, variance = ((1 - s) ** 2 * 0.25 + s**2 for s in (P, sigma))
    away = (1 - P) * 0.2 * (1 - keep**2 * variance_p / variance)
    ratio = gradient(0.9) / gradient(0.5)
    torch.testing.assert_close(ratio, torch.full_like(ratio, -1.0))
    noisy = renoise(x.detach(), P, level, eps)
    norm_B = (x - denoise(noisy, teacher(noisy, level), level, P)).abs().flatten(1).mean(1).detach()
    expected = (away / norm_B).float().view(-1, 1, 1, 1, 1).expand_as(x).double()
    torch.testing.assert_close(gradient(0.9), expected, rtol=1e-4, atol=1e-6)


def test_an_expert_learns_the_teachers_noised_samples() -> None:
    """x_p = a eps + c of noise, its moments known to an exact fake score, ends at the teacher's x_p, not at its x0."""
    teacher, weights = GaussianVelocity(0.7, 0.5), torch.tensor([1.0, 0.0], requires_grad=True)
    optimizer, generator = torch.optim.Adam([weights], lr=0.02), torch.Generator().manual_seed(0)
    for _ in range(300):
        start, eps = torch.randn(2, 64, 1, 1, 2, 2, generator=generator)
        level = P + (1 - P) * (0.02 + 0.96 * torch.rand(64, generator=generator))
        x = weights[0] * start + weights[1]
        mean, std = weights[1].item() / (1 - P), weights[0].item() ** 2 - P**2
        fake = GaussianVelocity(mean, max(std, 1e-6) ** 0.5 / (1 - P))
        how = {"teacher": unguided(teacher), "fake_score": fake, "sigma_B": level, "eps_BCFHW": eps, "end": P}
        distribution_matching(x, **how).per_sample_B.mean().backward()  # type: ignore[arg-type]
        optimizer.step()
        optimizer.zero_grad()
    expected = torch.tensor([((1 - P) ** 2 * 0.25 + P**2) ** 0.5, (1 - P) * 0.7])
    torch.testing.assert_close(weights.detach(), expected, rtol=0.02, atol=0.02)
