"""Full frame rate from half: the network that fills in the missing latent frames between two stages of a rollout."""

from __future__ import annotations

from avd.interpolation.unet import FrameInterpolator, InterpolatorConfig

__all__ = ["FrameInterpolator", "InterpolatorConfig"]
