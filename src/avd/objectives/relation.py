"""Relation of frames: a clip's frames should be as alike as the two scores say (CoDMD, arXiv 2606.21982).

Latents are averaged over height and width; R are the cosines between a clip's frames, (F, F). Distribution matching has
asked both scores about the sample x and left what they see, x0_fake and x0_teacher. With the temperature T,

    P = softmax((R(x) - (R(x0_fake) - R(x0_teacher))) / T)       row by row, without gradient
    loss = mean over frames of KL(P || softmax(R(x) / T))

Where the teacher sees frames less alike than the fake score does, those of x are moved apart: what distribution
matching does for each value, this does for what changes over time. It asks no network, and is 0 where the scores agree.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from avd.objectives.source import RolloutSource
from avd.objectives.term import Sample, Setting, Stateless, Term, TermSection
from avd.types import LossTerm


def frame_cosines(x_BCFHW: Tensor) -> Tensor:
    """Cosines between the frames of each clip, averaged over height and width: (B, F, F)."""
    pooled_BCF = F.normalize(x_BCFHW.float().mean((3, 4)), dim=1)
    return torch.einsum("bcf,bcg->bfg", pooled_BCF, pooled_BCF)


def relation(x_BCFHW: Tensor, *, fake_BCFHW: Tensor, teacher_BCFHW: Tensor, temperature: float = 0.1) -> LossTerm:
    """The loss of samples `x_BCFHW`, which fake score and teacher see as the other two; gradient reaches only them."""
    cosines = frame_cosines(x_BCFHW)
    with torch.no_grad():
        difference = frame_cosines(fake_BCFHW) - frame_cosines(teacher_BCFHW)
        target = ((cosines - difference) / temperature).log_softmax(-1)
    found = (cosines / temperature).log_softmax(-1)
    divergence_BF = (target.exp() * (target - found)).sum(-1)
    metrics = {"relation_difference": difference.mean().item()}
    return LossTerm("relation", divergence_BF.mean(1), metrics)


class RelationRecipe(TermSection):
    """Relation of frames; weight 0 leaves it out."""

    temperature: float = Field(0.1, gt=0, le=1000)


def _make(section: RelationRecipe, setting: Setting) -> Stateless:
    def loss(sample: Sample) -> LossTerm:
        fake, teacher = sample.notes["x0_fake"], sample.notes["x0_teacher"]
        x, temperature = sample.output_BCFHW, section.temperature
        return relation(x, fake_BCFHW=fake, teacher_BCFHW=teacher, temperature=temperature)

    return Stateless(loss)


TERM = Term(
    name="relation",
    about="divergence of the cosines between the frames of the student's samples from those the two scores ask for",
    paper="CoDMD, arXiv 2606.21982",
    section=RelationRecipe,
    source=lambda section: RolloutSource(),
    reads=("x0_fake", "x0_teacher"),
    least_frames=lambda section: 2,
    make=_make,
)
