"""Temporal regularization (AVD Eq. 8): samples whose frames are all alike are dear.

    L_temp = -log( E_x[ Var_over_frames(x) ] + eps )

The expectation runs over the batch and over all latent values of a frame. Truncated at a threshold, the loss stops
acting once it has fallen below it: the motion is there, and more of it would make frames jump.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from avd.types import LossTerm


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

    Below `truncation` the loss is constant and its gradient zero. `expectation` takes the mean of a (B,) tensor; where
    a batch is spread over ranks, over all of them.
    """
    variance = global_mean(frame_variance(x_BCFHW))
    loss = -(variance + eps).log()
    metrics = {"temporal_variance": variance.item(), "temporal_plain": loss.item()}
    return LossTerm("temporal", loss.clamp_min(truncation).expand(len(x_BCFHW)), metrics)
