"""Temporal regularization (AVD Eq. 8): samples whose frames are all alike are expensive.

    L_temp = -log( E_x[ Var_over_frames(x) ] + eps )

The expectation runs over the batch and over all latent values of a frame. Truncated at a threshold, the loss stops
acting once it has fallen below it: the motion is there, and more of it would make frames jump.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from pydantic import Field, ValidationError, ValidatorFunctionWrapHandler, field_validator
from torch import Tensor

from avd.objectives.source import RolloutSource
from avd.objectives.term import Sample, Setting, Stateless, Term, TermSection
from avd.section import MOST_WEIGHT
from avd.types import LossTerm

_LARGEST = 1000.0
"""Truncation past any loss: float32 holds no variance with a larger logarithm."""
_REAL_LATENTS = 256
"""Real latents whose loss is the threshold that `truncation: data` stands for."""


def frame_variance(x_BCFHW: Tensor) -> Tensor:
    """Population variance over frames, averaged over a sample's other axes: shape (B,)."""
    return x_BCFHW.float().var(dim=2, correction=0).flatten(1).mean(1)


def temporal_regularization(
    x_BCFHW: Tensor,
    *,
    truncation: float = -math.inf,
    eps: float = 1e-6,
    global_mean: Callable[[Tensor], Tensor] = torch.mean,
) -> LossTerm:
    """The loss of a batch, the same value for each of its samples, as the expectation stands inside the logarithm.

    Below `truncation` the loss is constant and its gradient zero. `global_mean` takes the mean of a (B,) tensor; where
    a batch is spread over ranks, over all of them.
    """
    variance = global_mean(frame_variance(x_BCFHW))
    loss = -(variance + eps).log()
    metrics = {"temporal_variance": variance.item(), "temporal_plain": loss.item()}
    return LossTerm("temporal", loss.clamp_min(truncation).expand(len(x_BCFHW)), metrics)


class TemporalRecipe(TermSection):
    """Temporal regularization; weight 0 leaves it out."""

    weight: float = Field(0.05, ge=0, le=MOST_WEIGHT)
    truncation: float | Literal["data", "never"] = 0.6
    """Loss at which it stops acting: a number (paper: 0.6), or the loss of the real latents themselves ("data")."""

    @field_validator("truncation", mode="wrap")
    @classmethod
    def _check(cls, value: object, validate: ValidatorFunctionWrapHandler) -> object:
        try:
            found = validate(value)
        except ValidationError:  # a union's own errors are one per kind
            raise ValueError('must be a number, "data" or "never"') from None
        if isinstance(found, float) and abs(found) > _LARGEST:
            raise ValueError(f'must be a number from -{_LARGEST:g} to {_LARGEST:g}, "data" or "never"')
        return found


def _threshold(section: TemporalRecipe, setting: Setting) -> float:
    if section.truncation == "never":
        return -math.inf
    if section.truncation == "data":
        return temporal_regularization(setting.real_latents(_REAL_LATENTS)).per_sample_B[0].item()
    return section.truncation


def _make(section: TemporalRecipe, setting: Setting) -> Stateless:
    threshold = _threshold(section, setting)

    def loss(sample: Sample) -> LossTerm:
        return temporal_regularization(sample.output_BCFHW, truncation=threshold, global_mean=setting.global_mean)

    return Stateless(loss)


TERM = Term(
    name="temporal",
    about="minus the logarithm of the variance over frames of the student's samples",
    paper="AVD, Eq. 8",
    section=TemporalRecipe,
    source=lambda section: RolloutSource(),
    make=_make,
    full_batch=True,
    measures_data=lambda section: section.truncation == "data",
)
