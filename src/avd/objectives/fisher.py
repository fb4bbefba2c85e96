"""Fisher divergence: the student's samples move so that the fake score, asked about them, says what the teacher says.

SGMD (arXiv 2605.30116, Eq. 13 and 21), in x0 space with DMD's normalisation. For a sample x of the student, noised to
x_sigma = (1 - sigma) x + sigma eps:

    loss = 1/2 mean (x0_fake(x_sigma) - sg x0_real(x_sigma))^2 / sg mean|x - x0_real|
         - residual / 2 mean (x0_fake(x_sigma) - sg x)^2 / sigma

The only way to x is through the input of the fake score, whose weights learn nothing from it. So x moves in directions
that change what the fake score sees, where distribution matching moves it by the difference itself. For Gaussian
samples the two gradients have one direction, and this is the smaller by (1 - sigma) d x0_fake / d x_sigma. The second
term moves a sample towards where the fake score sees it, which is nearer to the mean: with residual 0 the optimum is
the teacher's distribution, and with more samples vary less than the teacher's. One update of the fake score for each of
the student's is the method's own number, and makes it cheap.

SiD (arXiv 2404.04057, in the form that Self-Forcing trains) has the same sources and another loss, whose gradient also
passes through the teacher:

    loss = mean (x0_real - x0_fake) ((x0_real - x) - alpha (x0_real - x0_fake)) / sg mean|x - x0_real|
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from avd.flow import GuidedVelocity, add_noise, per_sample, x0_from_velocity
from avd.objectives.fake_score import GuidedScore, Score, ScoreSection, distance_to_real, fake_score
from avd.objectives.passes import Pass
from avd.objectives.source import RolloutSource
from avd.objectives.term import Sample, Setting, Stateless, Term, through_input
from avd.types import LossTerm


def sgmd(
    x_BCFHW: Tensor,
    *,
    teacher: GuidedScore,
    fake_score: Score,
    sigma_B: Tensor,
    eps_BCFHW: Tensor,
    residual: float = 0.1,
) -> LossTerm:
    """The loss of samples `x_BCFHW`; gradient reaches only them, through the input of `fake_score`.

    Both networks are called once, the guided `teacher` without gradient, on the samples noised with `eps_BCFHW` to
    `sigma_B` in (0, 1].
    """
    clean = x_BCFHW.detach().float()
    with torch.enable_grad():
        x = clean.clone().requires_grad_()
        noisy = add_noise(x, eps_BCFHW, sigma_B)
        with torch.no_grad():
            real = x0_from_velocity(noisy, teacher(noisy, sigma_B).velocity, sigma_B)
            norm_B = distance_to_real(clean, real)
        fake = x0_from_velocity(noisy, fake_score(noisy, sigma_B), sigma_B)
        matching_B = 0.5 * (fake - real).square().flatten(1).mean(1) / norm_B
        residual_B = 0.5 * ((fake - clean).square() / per_sample(sigma_B, fake)).flatten(1).mean(1)
        loss_B = matching_B - residual * residual_B
    metrics = {"fisher_norm": norm_B.mean().item(), "fisher_residual": residual_B.mean().item()}
    return LossTerm("fisher", through_input(x_BCFHW, x, loss_B), metrics)


def sid(
    x_BCFHW: Tensor,
    *,
    teacher: GuidedScore,
    fake_score: Score,
    sigma_B: Tensor,
    eps_BCFHW: Tensor,
    alpha: float = 1.0,
) -> LossTerm:
    """The same of SiD; gradient reaches the samples through the inputs of both networks, too."""
    with torch.enable_grad():
        x = x_BCFHW.detach().float().requires_grad_()
        noisy = add_noise(x, eps_BCFHW, sigma_B)
        real = x0_from_velocity(noisy, teacher(noisy, sigma_B).velocity, sigma_B)
        fake = x0_from_velocity(noisy, fake_score(noisy, sigma_B), sigma_B)
        norm_B = distance_to_real(x, real).detach()
        difference = real - fake
        loss_B = (difference * ((real - x) - alpha * difference)).flatten(1).mean(1) / norm_B
    return LossTerm("fisher", through_input(x_BCFHW, x, loss_B), {"fisher_norm": norm_B.mean().item()})


class FisherRecipe(ScoreSection):
    """Fisher divergence of the two scores; weight 0 leaves it out."""

    form: Literal["sgmd", "sid"] = "sgmd"
    residual: float = Field(0.1, ge=0, le=100)
    """SGMD's weight of the pull to where the fake score sees a sample; it calls it lambda."""
    alpha: float = Field(1.0, ge=0, le=100)
    """SiD's weight of the squared difference."""


def _make(section: FisherRecipe, setting: Setting) -> Stateless:
    def loss(sample: Sample) -> LossTerm:
        x, networks = sample.output_BCFHW, sample.networks

        def teacher(noisy: Tensor, sigma: Tensor) -> GuidedVelocity:
            return networks.teacher(noisy, sigma, section.standard_guidance)

        def fake(noisy: Tensor, sigma: Tensor) -> Tensor:
            return networks.auxiliary("fake_score", noisy, sigma)

        sigma_B = section.levels.draw(sample.random, "fisher")
        eps = sample.random.normal("fisher", "noise", shape=x.shape[1:])
        if section.form == "sid":
            return sid(x, teacher=teacher, fake_score=fake, sigma_B=sigma_B, eps_BCFHW=eps, alpha=section.alpha)
        return sgmd(x, teacher=teacher, fake_score=fake, sigma_B=sigma_B, eps_BCFHW=eps, residual=section.residual)

    return Stateless(loss)


TERM = Term(
    name="fisher",
    about="squared difference of the two scores on the student's samples, lowered through the fake score's input",
    paper="SGMD, arXiv 2605.30116, and SiD, arXiv 2404.04057",
    section=FisherRecipe,
    source=lambda section: RolloutSource(),
    auxiliaries=lambda section: (fake_score(section.levels),),
    passes=lambda section: (
        Pass("teacher with guidance", "teacher", section.branches, to_input=section.form == "sid"),
        Pass("fake score, through its input", "fake_score", to_input=True),
    ),
    make=_make,
)
