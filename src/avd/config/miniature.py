"""What `avd train` does: recipes of the VAE, the teacher and the interpolator. Each is one flat section.

Their defaults are what the shipped `wan-mini` was last trained with; the recipes in the package state the same values.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from avd.section import MOST_CLIPS, MOST_SEED, MOST_UPDATES, MOST_WORLD_CLIPS, Section


class VAERecipe(Section):
    """Loss of an error e in [-2, 2]: mean square of its brightness, `chroma` times that of its colour, `sharpness`
    times |e|, `edges` times the mean square of its spatial differences, and `kl` times the KL per latent value.

    The square finds the picture and the absolute value sharpens it. Colours are muted, so they count for more.
    """

    kind: Literal["vae"] = "vae"
    updates: int = Field(1000, ge=1, le=MOST_UPDATES)
    batch: int = Field(4, ge=2, le=MOST_CLIPS)
    """Training clips of an update; every fourth update takes half as many, at full length."""
    frames: int = Field(9, ge=1)
    """Frames of a training clip, 4 n + 1."""
    learning_rate: float = Field(1e-3, gt=0, le=1)
    warmup: int = Field(20, ge=0, le=MOST_UPDATES)
    """Updates over which the learning rate rises to its value."""
    chroma: float = Field(4.0, ge=0, le=1e6)
    sharpness: float = Field(0.1, ge=0, le=1e6)
    edges: float = Field(1.0, ge=0, le=1e6)
    kl: float = Field(1e-5, ge=0, le=1e6)
    ema: float = Field(0.99, ge=0, lt=1)
    seed: int = Field(0, ge=0, le=MOST_SEED)
    level: int = Field(0, ge=0)
    """Level of the built-in world."""

    @field_validator("frames")
    @classmethod
    def _check(cls, frames: int) -> int:
        if frames % 4 != 1:
            raise ValueError(f"must be 4 n + 1, such as {max(frames // 4, 1) * 4 + 1}")
        return frames


class TeacherRecipe(Section):
    """Flow matching of transformer and text encoder together, on clips of the built-in world."""

    kind: Literal["teacher"] = "teacher"
    updates: int = Field(9_000, ge=1, le=MOST_UPDATES)
    batch: int = Field(64, ge=1, le=MOST_CLIPS)
    learning_rate: float = Field(1e-3, gt=0, le=1)
    warmup: int = Field(200, ge=0, le=MOST_UPDATES)
    cooldown: float = Field(0.5, ge=0, le=1)
    """Share of the updates, at the end, over which the learning rate falls to zero."""
    caption_dropout: float = Field(0.1, ge=0, le=1)
    """Share of the samples trained on the empty prompt, for classifier-free guidance."""
    sigma_mean: float = Field(1.5, ge=-100, le=100)
    sigma_std: float = Field(1.0, ge=0, le=100)
    """Training noise levels are sigmoid(N(mean, std)), logit-normal as in SD3 (arXiv 2403.03206) ..."""
    sigma_uniform: float = Field(0.15, ge=0, le=1)
    """... except for this share, drawn uniformly from (0, 1], so that sigma = 1 is learnt too."""
    matrix_rate: float = Field(3.0, ge=0, le=1000)
    """Learning rate of the matrices in the transformer's blocks, as a multiple of `learning_rate`: Muon trains them.
    0: AdamW trains all."""
    object_maps: float = Field(0.25, ge=0, le=1e6)
    """Weight of a second loss, in training only: each token's objects, of which the world knows the truth, are read
    from the features after the third block."""
    weight_decay: float = Field(0.01, ge=0, le=100)
    ema: float = Field(0.999, ge=0, lt=1)
    clips: int = Field(32_768, ge=1, le=MOST_WORLD_CLIPS)
    """Clips of the built-in world to encode."""
    seed: int = Field(0, ge=0, le=MOST_SEED)
    level: int = Field(0, ge=0)
    """Level of the built-in world."""
    vae: str | None = None
    """A folder written by `avd train vae`, or its `vae/` folder. A run cannot do without one."""
    start: str | None = Field(None, alias="from")
    """Model whose weights training starts from; None: random weights."""


class InterpolatorRecipe(Section):
    """Every second latent frame in, the missing ones out; with `space` also every second row and column."""

    kind: Literal["interpolator"] = "interpolator"
    updates: int = Field(2000, ge=1, le=MOST_UPDATES)
    batch: int = Field(64, ge=1, le=MOST_CLIPS)
    learning_rate: float = Field(1e-3, gt=0, le=1)
    warmup: int = Field(100, ge=0, le=MOST_UPDATES)
    cooldown: float = Field(0.3, ge=0, le=1)
    """Share of the updates, at the end, over which the learning rate falls to zero."""
    widths: tuple[Annotated[int, Field(ge=8, le=8192, multiple_of=8)], ...] = Field(
        (32, 64, 128), min_length=1, max_length=8
    )
    """Channels of the U-Net, finest level first."""
    space: bool = False
    """Fill in rows and columns too, for students with stages at half resolution."""
    ema: float = Field(0.999, ge=0, lt=1)
    noise: float = Field(0.0, ge=0, le=100)
    """Standard deviation of Gaussian noise on the frames that go in, against clean ones to come out.

    For a student whose predictions, which are what the network meets in a rollout, are grainy. Zero is the method's
    plain training: early predictions tend to be too smooth, not grainy, and noise costs accuracy on clean input.
    """
    seed: int = Field(0, ge=0, le=MOST_SEED)
    level: int = Field(0, ge=0)
    """Level of the built-in world."""
    model: str = "wan-mini"
    """Model whose latents are interpolated."""
    student: str | None = None
    """A student's folder or run, which takes the model's place: the clips are those that it predicts for the captions
    of the data, at the last stage that it runs on part of the latents."""
    data: str | None = None
    """A cache written by `avd prepare`; None: the built-in world."""
    clips: int = Field(4096, ge=16, le=MOST_WORLD_CLIPS)
    """Clips of the built-in world to encode when there is no cache; with a student, the most that it predicts."""
    heldout: int = Field(256, ge=1, le=MOST_CLIPS)
    """The most clips that are held out of training and measured; of fewer than 20 times as many, a twentieth."""
