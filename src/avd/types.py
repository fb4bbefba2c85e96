"""Words the whole project shares.

Shape suffixes of tensors in maths code, as in `x_BCFHW`:

    B  samples in a batch            L  text tokens of a prompt
    C  latent channels               D  width of a text embedding
    F  latent frames                 S  stages of a rollout
    H  latent height                 P  pairs of neighbouring latent frames
    W  latent width

Pixel videos are uint8 arrays of shape (F, H, W, 3), sRGB. Latents are float tensors of shape (B, C, F, H, W), whitened
with the VAE's own mean and standard deviation. A clip of `4 n + 1` frames has `n + 1` latent frames.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:  # so that rooms without maths can use UserError without loading torch
    from torch import Tensor


class UserError(ValueError):
    """Something a user can mend. The message is one line: what was found, where, and what to do.

    The command line prints it and exits with code 2; anything else is a bug and may print a traceback.
    """


class Stopped(Exception):
    """A run that ended early, on purpose and with its state saved. The command line prints it and exits with `code`."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class Velocity(Protocol):
    """A network seen as the maths sees it: the velocity v = eps - x0 that it predicts at a noise level.

    `x_BCFHW` is the noisy latent, `sigma_B` its noise level in (0, 1], `prompt_BLD` the prompt embeddings. With
    `frame_stride` s, frame i of `x_BCFHW` stands at position s * i of the full-rate video.
    """

    def __call__(self, x_BCFHW: Tensor, sigma_B: Tensor, prompt_BLD: Tensor, *, frame_stride: int = 1) -> Tensor: ...


@dataclass(frozen=True)
class LossTerm:
    """What an objective returns: a named loss with a value per sample, metrics to log, and values to watch.

    `per_sample_B` carries the gradient; its mean is the term of the total loss, before the recipe's weight. `values`
    are further numbers per sample, (B,) each, without gradient, by names of the term's own.
    """

    name: str
    per_sample_B: Tensor
    metrics: Mapping[str, float] = field(default_factory=dict)
    values: Mapping[str, Tensor] = field(default_factory=dict)
