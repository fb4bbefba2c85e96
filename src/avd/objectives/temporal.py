"""Temporal regularization (AVD Eq. 8): samples whose frames are all alike are expensive.

    L_temp = -log( E_x[ Var_over_frames(x) ] + eps )

The expectation runs over the batch and over all latent values of a frame. Truncated at a threshold, the loss stops
acting once it has fallen below it: the motion is there, and more of it would make frames jump.

Two options that the paper does not have. Variance rewards flicker as much as motion. `counts: motion` counts only
change that lasts, the unbiased variance over frames less what neighbouring frames differ by (von Neumann's estimate of
a variance without trend):

    M(x) = 1/(F-1) sum_f (x_f - mean x)^2 - 1/(2 (F-1)) sum_f (x_{f+1} - x_f)^2

Both estimate the variance of frames drawn independently, so for such noise M is 0 in expectation; content that changes
little from frame to frame and much over the clip keeps its variance. As a filter in time, M weighs the power at w
radians per frame by about cos w: slow change counts, and change that turns back at once counts against it. Where M is
too small for a logarithm, its tangent takes over.

`truncation: clip` is a threshold per caption. Rollouts then are on the captions of real clips, and what counts of a
sample counts only up to that of its own clip, with c the variance or M:

    L_temp = -log( E_b[ min(c(x_b), c(real_b)) ] + eps )

A sample that moves as much as its clip is left alone, whatever the others do, and so is one whose caption describes
stillness. Of two clips of one caption one moves less, so by chance some samples are pushed even at the optimum.
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
_SMALLEST_SHARE = 0.05
"""Share of the variance below which motion's logarithm is continued by its tangent."""
_LEAST_FRAMES = 3
Counts = Literal["change", "motion"]
_REAL_LATENTS = 256
"""Real latents whose loss is the threshold that `truncation: data` stands for."""


def frame_variance(x_BCFHW: Tensor) -> Tensor:
    """Population variance over frames, averaged over a sample's other axes: shape (B,)."""
    return x_BCFHW.float().var(dim=2, correction=0).flatten(1).mean(1)


def frame_motion(x_BCFHW: Tensor) -> Tensor:
    """M of the module's text, averaged over a sample's other axes: shape (B,), negative where frames only flicker.

    Three frames are the fewest that can tell the two apart.
    """
    x = x_BCFHW.float()
    assert x.shape[2] >= _LEAST_FRAMES, "see `distillation.preflight`"
    steps = x.diff(dim=2).square().mean(dim=2) / 2
    return (x.var(dim=2, correction=1) - steps).flatten(1).mean(1)


def counted(x_BCFHW: Tensor, counts: Counts) -> Tensor:
    """What counts as motion of each sample, (B,)."""
    return frame_variance(x_BCFHW) if counts == "change" else frame_motion(x_BCFHW)


def temporal_regularization(
    x_BCFHW: Tensor,
    *,
    truncation: float = -math.inf,
    counts: Counts = "change",
    enough_B: Tensor | None = None,
    eps: float = 1e-6,
    global_mean: Callable[[Tensor], Tensor] = torch.mean,
) -> LossTerm:
    """The loss of a batch, the same value for each of its samples, as the expectation stands inside the logarithm.

    Below `truncation` the loss is constant and its gradient zero. `enough_B` is how much of each sample counts at most.
    `global_mean` takes the mean of a (B,) tensor; where a batch is spread over ranks, over all of them.
    """
    counted_B = counted(x_BCFHW, counts)
    if enough_B is not None:
        counted_B = torch.minimum(counted_B, enough_B)
    variance = global_mean(counted_B)
    if counts == "change":
        loss = -(variance + eps).log()
    else:
        least = _SMALLEST_SHARE * global_mean(frame_variance(x_BCFHW.detach())) + eps
        loss = 1 - (variance.clamp_max(least) / least) - variance.clamp_min(least).log()
    metrics = {"temporal_variance": variance.item(), "temporal_plain": loss.item()}
    return LossTerm("temporal", loss.clamp_min(truncation).expand(len(x_BCFHW)), metrics)


class TemporalRecipe(TermSection):
    """Temporal regularization; weight 0 leaves it out."""

    weight: float = Field(0.05, ge=0, le=MOST_WEIGHT)
    truncation: float | Literal["data", "clip", "never"] = 0.6
    """Loss at which it stops acting: a number (paper: 0.6), or the loss of the real latents themselves ("data"). Or
    "clip": each sample stops at what counts of the real clip of its caption."""
    counts: Counts = "change"
    """What is rewarded: any change over frames (paper), or motion, which lasts from frame to frame."""

    @field_validator("truncation", mode="wrap")
    @classmethod
    def _check(cls, value: object, validate: ValidatorFunctionWrapHandler) -> object:
        try:
            found = validate(value)
        except ValidationError:  # a union's own errors are one per kind
            raise ValueError('must be a number, "data", "clip" or "never"') from None
        if isinstance(found, float) and abs(found) > _LARGEST:
            raise ValueError(f'must be a number from -{_LARGEST:g} to {_LARGEST:g}, "data", "clip" or "never"')
        return found


def _threshold(section: TemporalRecipe, setting: Setting) -> float:
    if section.truncation == "data":
        term = temporal_regularization(setting.real_latents(_REAL_LATENTS), counts=section.counts)
        return term.per_sample_B[0].item()
    return section.truncation if isinstance(section.truncation, float) else -math.inf


def _make(section: TemporalRecipe, setting: Setting) -> Stateless:
    threshold = _threshold(section, setting)

    def loss(sample: Sample) -> LossTerm:
        enough_B = None
        if section.truncation == "clip":
            assert sample.x0_BCFHW is not None
            enough_B = counted(sample.x0_BCFHW, section.counts)
        return temporal_regularization(
            sample.output_BCFHW,
            truncation=threshold,
            counts=section.counts,
            enough_B=enough_B,
            global_mean=setting.global_mean,
        )

    return Stateless(loss)


TERM = Term(
    name="temporal",
    about="minus the logarithm of the variance over frames of the student's samples",
    paper="AVD, Eq. 8",
    section=TemporalRecipe,
    source=lambda section: RolloutSource(),
    make=_make,
    full_batch=True,
    paired=lambda section: section.truncation == "clip",
    least_frames=lambda section: _LEAST_FRAMES if section.counts == "motion" else 1,
    measures_data=lambda section: section.truncation == "data",
)
