"""Train the latent-frame interpolator: every second frame of a clip in, the full sequence out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from avd.config import InterpolatorRecipe
from avd.engine.loop import UpdateResult
from avd.engine.optimizers import trapezoid
from avd.engine.randomness import derive_seed, generator_for
from avd.engine.stopping import Between, one_part
from avd.files import atomic_folder
from avd.miniature.training import NetworkTraining
from avd.models.interpolator import FrameInterpolator, InterpolatorConfig
from avd.types import UserError


class Clips(Protocol):
    """The part of `avd.data.cache.LatentSource` that is needed here."""

    def __len__(self) -> int: ...

    def latents(self, indices: Sequence[int]) -> Tensor:
        """Whitened latents (B, C, F, H, W) of the clips at `indices`."""
        ...


def check_clips(count: int, frames: int) -> None:
    """Raise UserError unless an interpolator can learn from `count` clips of `frames` latent frames."""
    if count < 2:
        raise UserError(f"there is {count} clip, and one of them is held out: give at least 2")
    if frames < 3 or frames % 2 == 0:
        raise UserError(
            f"clips have {frames} latent frames: half rate needs an odd number, at least 3; "
            "prepare clips of 8 n + 1 video frames"
        )


class InterpolatorTask(NetworkTraining[FrameInterpolator]):
    """An `engine.loop.Task`. `heldout` are whitened latents (N, C, F, H, W) of clips that are not in `source`.

    Raises UserError unless clips have an odd number of latent frames, at least 3, and the two are of one shape.
    """

    def __init__(
        self, config: InterpolatorRecipe, source: Clips, heldout: Tensor, device: torch.device | str = "cpu"
    ) -> None:
        shape, heldout_shape = tuple(source.latents([0]).shape[1:]), tuple(heldout.shape[1:])
        if shape != heldout_shape:
            raise UserError(
                f"training clips have latents of shape {shape}, held-out clips of {heldout_shape}: "
                "prepare both with the same model and clip size"
            )
        channels, frames = shape[:2]
        check_clips(len(source) + len(heldout), frames)
        self.config, self.source, self.heldout, self.device = config, source, heldout, device
        torch.manual_seed(derive_seed(config.seed, "interpolator", "weights"))
        network = FrameInterpolator(InterpolatorConfig(channels, config.widths)).to(device).train()
        optimizer = torch.optim.Adam(network.parameters(), lr=1.0, betas=(0.9, 0.99))
        super().__init__("network", network, optimizer, config.ema)

    def update(self, n: int, between: Between = one_part) -> UpdateResult:
        config = self.config
        order = generator_for(config.seed, "interpolator", "data", n)
        indices = torch.randint(len(self.source), (config.batch,), generator=order).tolist()
        x_BCFHW = self.source.latents(indices).float()
        given = x_BCFHW[:, :, ::2]
        if config.noise > 0:
            grain = generator_for(config.seed, "interpolator", "noise", n)
            given = given + config.noise * torch.randn(given.shape, generator=grain)
        loss = missing_frames_error(self.network(given.to(self.device)), x_BCFHW.to(self.device)).mean()
        norm = self.step(loss, n, config.learning_rate * trapezoid(n, config.warmup, config.cooldown, config.updates))
        return UpdateResult({"loss": loss.item(), "grad_norm": norm.item()})

    @torch.no_grad()
    def validate(self, n: int) -> dict[str, float]:
        """Held-out error of the averaged weights, that of linear interpolation, and their ratio: below 1 is better."""
        learnt, linear = [], []
        for part in self.heldout.split(self.config.batch):
            x_BCFHW = part.to(self.device, torch.float32)
            given = x_BCFHW[:, :, ::2]
            middle = (given[:, :, :-1] + given[:, :, 1:]) / 2
            learnt.append(missing_frames_error(self.ema.module(given), x_BCFHW))
            linear.append((middle - x_BCFHW[:, :, 1::2]).square().flatten(1).mean(1))
        mse, linear_mse = torch.cat(learnt).mean().item(), torch.cat(linear).mean().item()
        return {"heldout_mse": mse, "heldout_linear_mse": linear_mse, "heldout_ratio": mse / max(linear_mse, 1e-12)}

    def sample(self, folder: Path, n: int) -> None:
        """The held-out ratio tells enough; a finished interpolator is looked at in half-rate samples of a student."""

    def export(self, folder: Path) -> None:
        with atomic_folder(folder / "interpolator") as writing:
            self.ema.module.save(writing)


def missing_frames_error(filled_BCFHW: Tensor, x_BCFHW: Tensor) -> Tensor:
    """Mean square error over the frames that half rate leaves out, those of odd number; per sample (B,)."""
    return (filled_BCFHW - x_BCFHW)[:, :, 1::2].square().flatten(1).mean(1)
