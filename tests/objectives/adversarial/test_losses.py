"""Adversarial matching: known logits, known slopes, where gradients go, and what a student learns from an exact D."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from avd.objectives.adversarial.losses import discriminator_loss, generator_loss

SHAPE = (4, 2, 3, 2, 2)
SIGMA = torch.tensor([0.2, 0.4, 0.6, 0.8])


def normal(name: str, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(map(ord, name)))
    return torch.randn(SHAPE, generator=generator)


class ExactLogit:
    """log p_real - log p_fake of noised Gaussian clips, given by mean and standard deviation of their values."""

    def __init__(self, real: tuple[float, Tensor | float], fake: tuple[Tensor | float, Tensor | float]) -> None:
        self.real, self.fake = real, fake

    def __call__(self, x: Tensor, sigma_B: Tensor) -> Tensor:
        return (log_density(x, sigma_B, *self.real) - log_density(x, sigma_B, *self.fake)).unsqueeze(1)


def log_density(x: Tensor, sigma_B: Tensor, mean: Tensor | float, std: Tensor | float) -> Tensor:
    s = sigma_B.view(-1, 1, 1, 1, 1)
    variance = torch.as_tensor((1 - s) ** 2 * std**2 + s**2)
    each = -0.5 * (x - (1 - s) * mean) ** 2 / variance - 0.5 * (2 * math.pi * variance).log()
    return each.flatten(1).sum(1)


def score(x: Tensor, sigma_B: Tensor, mean: float, std: float) -> Tensor:
    s = sigma_B.view(-1, 1, 1, 1, 1)
    return -(x - (1 - s) * mean) / ((1 - s) ** 2 * std**2 + s**2)


def gradient_of(loss_B: Tensor, x: Tensor) -> Tensor:
    return torch.autograd.grad(loss_B.sum(), x)[0]


def test_at_the_exact_logit_a_sample_is_pushed_along_the_difference_of_scores() -> None:
    real, fake = (0.3, 0.7), (0.0, 1.0)
    x, eps = normal("x").requires_grad_(), normal("eps")
    exact = ExactLogit(real, fake)
    found = gradient_of(generator_loss(x, discriminate=exact, sigma_B=SIGMA, eps_BCFHW=eps).per_sample_B, x)
    s = SIGMA.view(-1, 1, 1, 1, 1)
    noisy = ((1 - s) * x + s * eps).detach()
    unsure = torch.sigmoid(-exact(noisy, SIGMA)).view(-1, 1, 1, 1, 1)
    expected = -unsure * (score(noisy, SIGMA, *real) - score(noisy, SIGMA, *fake)) * (1 - s)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_where_both_are_alike_nobody_learns() -> None:
    alike = ExactLogit((0.3, 0.7), (0.3, 0.7))
    x = normal("x").requires_grad_()
    term = generator_loss(x, discriminate=alike, sigma_B=SIGMA, eps_BCFHW=normal("eps"))
    assert torch.equal(gradient_of(term.per_sample_B, x), torch.zeros(SHAPE))
    torch.testing.assert_close(term.per_sample_B.detach(), torch.full((4,), math.log(2)))
    judged = discriminator_loss(x, normal("real"), discriminate=alike, sigma_B=SIGMA, noise=normal, r1=10.0)
    torch.testing.assert_close(judged.per_sample_B, torch.full((4,), 2 * math.log(2)))
    assert judged.metrics == {"discriminator_accuracy": 0.5, "discriminator_r1": 0.0}


def test_the_exact_logit_is_the_discriminators_optimum() -> None:
    """Logits moved or scaled have a higher loss, for many clips of one value."""
    generator = torch.Generator().manual_seed(0)

    def many() -> Tensor:
        return torch.randn(20_000, 1, 1, 1, 1, generator=generator)

    fake, real, noises = many(), 0.8 + 0.5 * many(), {"fake": many(), "real": many()}
    sigma, exact = torch.full((20_000,), 0.3), ExactLogit((0.8, 0.5), (0.0, 1.0))

    def loss(offset: float, factor: float) -> float:
        term = discriminator_loss(
            fake, real, discriminate=lambda x, s: factor * exact(x, s) + offset, sigma_B=sigma, noise=noises.__getitem__
        )
        return term.per_sample_B.mean().item()

    best = loss(0.0, 1.0)
    assert all(loss(*other) > best + 1e-3 for other in [(0.3, 1.0), (-0.3, 1.0), (0.0, 1.3), (0.0, 0.7)])


def test_the_slope_of_a_linear_discriminator_is_known() -> None:
    w = normal("w")
    term = discriminator_loss(
        normal("x"),
        normal("y"),
        discriminate=lambda x, sigma: (w * x).flatten(1).sum(1, keepdim=True),
        sigma_B=SIGMA,
        noise=normal,
        r1=1.0,
        r1_step=0.05,
    )
    expected = (0.05 * (w * normal("r1")).flatten(1).sum(1)).square()
    assert term.metrics["discriminator_r1"] == pytest.approx(expected.mean().item(), rel=1e-3)


def test_hinges_stop_where_clips_are_told_apart() -> None:
    """One head says +2 of everything, the other -0.5: of the real clips and of the samples."""

    def discriminate(x: Tensor, sigma: Tensor) -> Tensor:
        return torch.tensor([[2.0, -0.5]]).expand(len(x), 2) + 0 * x.flatten(1).sum(1, keepdim=True)

    term = discriminator_loss(
        normal("x"), normal("y"), discriminate=discriminate, sigma_B=SIGMA, noise=normal, form="hinge"
    )
    torch.testing.assert_close(term.per_sample_B, torch.full((4,), (3 + 0 + 0.5 + 1.5) / 2))
    assert term.metrics["discriminator_accuracy"] == 0.5
    student = generator_loss(
        normal("x"), discriminate=discriminate, sigma_B=SIGMA, eps_BCFHW=normal("eps"), form="hinge"
    )
    torch.testing.assert_close(student.per_sample_B, torch.full((4,), -0.75))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(24, 3)

    def forward(self, x: Tensor, sigma_B: Tensor) -> Tensor:
        return self.layer(x.flatten(1)).tanh()


def test_the_students_gradient_reaches_no_weight_and_the_discriminators_no_sample() -> None:
    net, x = Net(), normal("x").requires_grad_()
    generator_loss(x, discriminate=net, sigma_B=SIGMA, eps_BCFHW=normal("eps")).per_sample_B.mean().backward()
    assert x.grad is not None and x.grad.abs().sum() > 0
    assert all(p.grad is None for p in net.parameters())
    x.grad = None
    discriminator_loss(
        x, normal("y"), discriminate=net, sigma_B=SIGMA, noise=normal, r1=1.0
    ).per_sample_B.mean().backward()
    assert x.grad is None and all(p.grad is not None for p in net.parameters())


def test_sample_and_real_clip_have_one_level_and_noise_of_their_own() -> None:
    calls: list[tuple[Tensor, Tensor]] = []

    def discriminate(x: Tensor, sigma: Tensor) -> Tensor:
        calls.append((x, sigma))
        return torch.zeros(len(x), 1)

    clip = normal("x")
    discriminator_loss(clip, clip, discriminate=discriminate, sigma_B=SIGMA, noise=normal)
    (fake, level), (real, other) = calls
    assert level is other and not torch.allclose(fake, real)


@pytest.mark.parametrize("form", ["softplus", "hinge"])
def test_a_student_against_the_exact_logit_ends_at_the_real_clips(form: str) -> None:
    """Clips a z + b; the discriminator is exact for each a and b. Mean and spread become those of the data."""
    a, b = torch.tensor(1.4, requires_grad=True), torch.tensor(-0.5, requires_grad=True)
    optimizer = torch.optim.Adam([a, b], lr=0.05)
    generator = torch.Generator().manual_seed(0)
    draw = partial(torch.randn, 256, 1, 1, 1, 1, generator=generator)
    for n in range(300):
        for group in optimizer.param_groups:
            group["lr"] = 0.05 * (1 - n / 300)
        sigma = 0.1 + 0.8 * torch.rand(256, generator=generator)
        exact = ExactLogit((0.6, 0.5), (b.detach(), a.detach()))
        term = generator_loss(
            a * draw() + b,
            discriminate=exact,
            sigma_B=sigma,
            eps_BCFHW=draw(),
            form=form,  # type: ignore[arg-type]
        )
        optimizer.zero_grad()
        term.per_sample_B.mean().backward()
        optimizer.step()
    assert a.item() == pytest.approx(0.5, abs=0.05) and b.item() == pytest.approx(0.6, abs=0.05)
