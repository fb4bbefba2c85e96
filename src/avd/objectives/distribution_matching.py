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

DFD (arXiv 2606.18478) asks the teacher, in a share of the updates, about a real clip y of the same prompt, noised with
the same eps to the same level, while the fake score is asked about x as ever:

    g = (x0_fake(x_sigma) - x0_real(y_sigma)) / mean|x - x0_real(y_sigma)|

What the teacher says of real clips carries their motion, and no guidance or fault of the student moves it. But it knows
nothing of x: samples are pulled to the mean of what the teacher says, and where prompts leave much open their variety
shrinks. It is for a few updates of a student that has been distilled before.

An expert of high noise makes samples x_p at noise level p, which are noised further. All of the above holds with x_p in
the place of x and x0: x_p,fake and x_p,real are the means of x_p given x_sigma (`flow.denoise`). Their difference is
b^2 (1 - p) / sigma^2 times that of x0_fake and x0_real, so this is the gradient of Phased DMD (arXiv 2510.27684) but
for its norm.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from avd.flow import add_noise, denoise, per_sample, renoise
from avd.objectives.fake_score import GuidedScore, Score, ScoreSection, distance_to_real, fake_score
from avd.objectives.passes import Pass
from avd.objectives.source import RolloutSource
from avd.objectives.term import Sample, Setting, Stateless, Term
from avd.section import MOST_WEIGHT
from avd.types import LossTerm

_COIN = 1_000_000
"""Sides of the coin that decides whether an update is one with real clips."""


def distribution_matching(
    x_BCFHW: Tensor,
    *,
    teacher: GuidedScore,
    fake_score: Score,
    sigma_B: Tensor,
    eps_BCFHW: Tensor,
    clip_BCFHW: Tensor | None = None,
    end: float = 0.0,
) -> LossTerm:
    """The loss of samples `x_BCFHW`; gradient reaches only them.

    `teacher` gives the guided velocity of the frozen teacher, `fake_score` that of the online score (no guidance); both
    are called once, without gradient, on the samples, of noise level `end`, noised with `eps_BCFHW` to `sigma_B` in
    (`end`, 1]; with `clip_BCFHW`, real latents of the samples' prompts, the teacher on these, noised to the same level.
    Notes: what both see, as `x0_fake` and `x0_teacher`.
    """
    with torch.no_grad():
        x = x_BCFHW.float()
        noisy = renoise(x, end, sigma_B, eps_BCFHW)
        shown = noisy if clip_BCFHW is None else add_noise(clip_BCFHW.float(), eps_BCFHW, sigma_B)
        answer = teacher(shown, sigma_B)
        real = denoise(shown, answer.velocity, sigma_B, end)
        unguided = denoise(shown, answer.unguided, sigma_B, end)
        fake = denoise(noisy, fake_score(noisy, sigma_B), sigma_B, end)
        norm_B = distance_to_real(x, real)
        gradient = (fake - real) / per_sample(norm_B, x)
        target = x - gradient
        parts = {
            "distribution_matching_unguided": fake - unguided,
            "distribution_matching_guidance": unguided - real,
        }
        squares = {name: part.square().flatten(1).mean(1) / norm_B.square() for name, part in parts.items()}
    loss_B = 0.5 * (x_BCFHW.float() - target).square().flatten(1).mean(1)
    metrics, notes = {"dm_norm": norm_B.mean().item()}, {"x0_fake": fake, "x0_teacher": real}
    return LossTerm("distribution_matching", loss_B, metrics, gradient_parts=squares, notes=notes)


class DistributionMatchingRecipe(ScoreSection):
    weight: float = Field(1.0, ge=0, le=MOST_WEIGHT)
    real: float = Field(0.0, ge=0, le=1)
    """Share of the updates in which the teacher is asked about real clips instead of the student's samples (DFD)."""
    from_scratch: bool = False
    """Allow `real` for a student that begins as the teacher."""


def _make(section: DistributionMatchingRecipe, setting: Setting) -> Stateless:
    def loss(sample: Sample) -> LossTerm:
        x, networks = sample.output_BCFHW, sample.networks
        real_turn = False
        if section.real:  # one coin for the full batch, wherever its samples are
            coin = sample.random.shared_integer("distribution matching", "real", high=_COIN)
            real_turn = coin < section.real * _COIN
        return distribution_matching(
            x,
            teacher=lambda noisy, sigma: networks.teacher(noisy, sigma, section.standard_guidance),
            fake_score=lambda noisy, sigma: networks.auxiliary("fake_score", noisy, sigma),
            sigma_B=section.levels.draw(sample.random, "distribution matching", end=sample.end),
            eps_BCFHW=sample.random.normal("distribution matching", "noise", shape=x.shape[1:]),
            clip_BCFHW=sample.x0_BCFHW if real_turn else None,
            end=sample.end,
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
    paired=lambda section: section.real > 0,
    writes=lambda section: () if section.real else ("x0_fake", "x0_teacher"),  # the teacher may see another clip
    continues=lambda section: section.real > 0 and not section.from_scratch,
    noisy=True,
)
