"""Distribution matching: pull the student's samples from where the fake score sees them to where the teacher does.

AVD Eq. 4; DMD (arXiv 2311.18828), Eq. 7 and 8. For a sample x of the student, noised to x_sigma:

    g = (x0_fake(x_sigma) - x0_real(x_sigma)) / mean|x - x0_real|        mean over all of a sample's values
    loss = 1/2 mean (x - stop_gradient(x - g))^2                         so that d loss / d x = g / (number of values)

In exact arithmetic g is the difference of the two scores times sigma^2 / (1 - sigma), per sample rescaled: the
normalisation makes all noise levels weigh about the same.

With the teacher's guidance, x0_real = x0_cond + (scale - 1) (x0_cond - x0_uncond), g is the sum of two parts. The two
answers that the teacher gives anyway tell their sizes:

    unguided = (x0_fake - x0_cond) / mean|x - x0_real|           what matches the two distributions
    guidance = (x0_cond - x0_real) / mean|x - x0_real|           what moves every sample to where its prompt is plainer

The second does not fade as the student comes to match the teacher. (Decoupled DMD, arXiv 2511.22677, takes them apart.)
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from avd.flow import add_noise, per_sample, x0_from_velocity
from avd.objectives.fake_score import GuidedScore, Score, ScoreSection, distance_to_real, fake_score
from avd.objectives.passes import Pass
from avd.objectives.source import RolloutSource
from avd.objectives.term import Sample, Setting, Stateless, Term
from avd.section import MOST_WEIGHT
from avd.types import LossTerm


def distribution_matching(
    x_BCFHW: Tensor, *, teacher: GuidedScore, fake_score: Score, sigma_B: Tensor, eps_BCFHW: Tensor
) -> LossTerm:
    """The loss of samples `x_BCFHW`; gradient reaches only them.

    `teacher` gives the guided velocity of the frozen teacher, `fake_score` that of the online score (no guidance); both
    are called once, without gradient, on the samples noised with `eps_BCFHW` to `sigma_B` in (0, 1].
    """
    with torch.no_grad():
        x = x_BCFHW.float()
        noisy = add_noise(x, eps_BCFHW, sigma_B)
        answer = teacher(noisy, sigma_B)
        real = x0_from_velocity(noisy, answer.velocity, sigma_B)
        unguided = x0_from_velocity(noisy, answer.unguided, sigma_B)
        fake = x0_from_velocity(noisy, fake_score(noisy, sigma_B), sigma_B)
        norm_B = distance_to_real(x, real)
        gradient = (fake - real) / per_sample(norm_B, x)
        target = x - gradient
        parts = {
            "distribution_matching_unguided": fake - unguided,
            "distribution_matching_guidance": unguided - real,
        }
        squares = {name: part.square().flatten(1).mean(1) / norm_B.square() for name, part in parts.items()}
    loss_B = 0.5 * (x_BCFHW.float() - target).square().flatten(1).mean(1)
    return LossTerm("distribution_matching", loss_B, {"dm_norm": norm_B.mean().item()}, gradient_parts=squares)


class DistributionMatchingRecipe(ScoreSection):
    weight: float = Field(1.0, ge=0, le=MOST_WEIGHT)


def _make(section: DistributionMatchingRecipe, setting: Setting) -> Stateless:
    def loss(sample: Sample) -> LossTerm:
        x, networks = sample.output_BCFHW, sample.networks
        return distribution_matching(
            x,
            teacher=lambda noisy, sigma: networks.teacher(noisy, sigma, section.standard_guidance),
            fake_score=lambda noisy, sigma: networks.auxiliary("fake_score", noisy, sigma),
            sigma_B=section.levels.draw(sample.random, "distribution matching"),
            eps_BCFHW=sample.random.normal("distribution matching", "noise", shape=x.shape[1:]),
        )

    return Stateless(loss)


TERM = Term(
    name="distribution_matching",
    about="difference of the teacher's and the fake score on the student's samples",
    paper="DMD, arXiv 2311.18828, and DMD2, arXiv 2405.14867",
    section=DistributionMatchingRecipe,
    source=lambda section: RolloutSource(),
    auxiliaries=lambda section: (fake_score(section.levels),),
    passes=lambda section: (
        Pass("teacher with guidance", "teacher", section.branches),
        Pass("fake score, matching", "fake_score"),
    ),
    make=_make,
)
