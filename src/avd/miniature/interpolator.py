"""Train the interpolator of latents: every second frame of a clip in, the full sequence out.

A network that is to fill in space too learns, in turns at random, from every second frame, from every second row and
column of all frames, and from both.

Clips are read batch by batch, each while the update before it is computed; no more of them are in memory. On several
ranks each reads and computes its share of every batch, and of the clips that are held out.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from avd.config import InterpolatorRecipe
from avd.engine.loop import UpdateResult
from avd.engine.optimizers import trapezoid
from avd.engine.randomness import derive_seed, generator_for
from avd.engine.ranks import SINGLE_PROCESS, Ranks
from avd.engine.stopping import Between, one_part
from avd.files import atomic_folder
from avd.flow import subsample
from avd.miniature.training import NetworkTraining
from avd.models.interpolator import FrameInterpolator, InterpolatorConfig, interpolate_linearly
from avd.sampling.rollout import Interpolate, Strides
from avd.types import UserError


class Clips(Protocol):
    """The part of `avd.data.cache.LatentSource` that is needed here."""

    def __len__(self) -> int: ...

    def latents(self, indices: Sequence[int]) -> Tensor:
        """Whitened latents (B, C, F, H, W) of the clips at `indices`."""
        ...


FRAMES, SPACE = (2, 1), (1, 2)
BOTH = (2, 2)


def check_clips(count: int, latent_CFHW: Sequence[int], *, space: bool = False) -> None:
    """Raise UserError unless an interpolator, with `space` one of rows and columns too, can learn from `count` clips
    whose latents are of this shape."""
    _, frames, height, width = latent_CFHW
    if count < 2:
        raise UserError(f"there is {count} clip, and one of them is held out: give at least 2")
    if frames < 3 or frames % 2 == 0:
        raise UserError(
            f"clips have {frames} latent frames: half rate needs an odd number, at least 3; "
            "prepare clips of 8 n + 1 video frames"
        )
    if space and (height % 2 or width % 2):
        raise UserError(
            f"clips have latents of {height} x {width}: half resolution needs even sides; prepare clips of another size"
        )


def check_batch(batch: int, ranks: int) -> None:
    """Raise UserError unless `ranks` ranks can share a batch."""
    if batch % ranks:
        raise UserError(f"batch is {batch}, over {ranks} processes: choose a multiple of {ranks}, or fewer processes")


def count_heldout(count: int, most: int) -> int:
    """How many of `count` clips, the last ones, are held out: a twentieth, at least 1 and at most `most`."""
    return min(max(count // 20, 1), most)


class InterpolatorTask(NetworkTraining[FrameInterpolator]):
    """An `engine.loop.Task`. `heldout` are clips that are not in `source`.

    Raises UserError as `check_clips`, and unless the two are of one shape.
    """

    def __init__(
        self, config: InterpolatorRecipe, source: Clips, heldout: Clips, ranks: Ranks = SINGLE_PROCESS
    ) -> None:
        shape, heldout_shape = (tuple(clips.latents([0]).shape[1:]) for clips in (source, heldout))
        if shape != heldout_shape:
            raise UserError(
                f"training clips have latents of shape {shape}, held-out clips of {heldout_shape}: "
                "prepare both with the same model and clip size"
            )
        check_clips(len(source) + len(heldout), shape, space=config.space)
        self.config, self.source, self.heldout = config, source, heldout
        torch.manual_seed(derive_seed(config.seed, "interpolator", "weights"))
        network = FrameInterpolator(InterpolatorConfig(shape[0], config.widths, config.space)).to(ranks.device).train()
        optimizer = torch.optim.Adam(network.parameters(), lr=1.0, betas=(0.9, 0.99))
        super().__init__("network", network, {"optimizer": optimizer}, config.ema, ranks)
        self._samples = ranks.samples(config.batch)
        self._reader = ThreadPoolExecutor(1, "read")
        self._ahead: tuple[int, Future[Tensor]] | None = None

    def update(self, n: int, between: Between = one_part) -> UpdateResult:
        config, device = self.config, self.ranks.device
        x_BCFHW = self._batch(n)
        strides = self._strides(n)
        given = subsample(x_BCFHW, *strides)
        if config.noise > 0:
            grain = generator_for(config.seed, "interpolator", "noise", n)
            noise = torch.randn(config.batch, *given.shape[1:], generator=grain)
            given = given + config.noise * noise[list(self._samples)]
        loss = missing_error(_fill(self.network, given.to(device), strides), x_BCFHW.to(device), strides).mean()
        norm = self.step(loss, n, config.learning_rate * trapezoid(n, config.warmup, config.cooldown, config.updates))
        return UpdateResult(self.ranks.mean_metrics({"loss": loss.item(), "grad_norm": norm.item()}))

    def _strides(self, n: int) -> Strides:
        """Those of update `n`, on all ranks."""
        if not self.config.space:
            return FRAMES
        order = generator_for(self.config.seed, "interpolator", "strides", n)
        return (FRAMES, SPACE, BOTH)[int(torch.randint(3, (), generator=order))]

    def _batch(self, n: int) -> Tensor:
        """This rank's clips of update `n`; those of the next one are read meanwhile."""
        ahead, self._ahead = self._ahead, None
        x_BCFHW = ahead[1].result() if ahead is not None and ahead[0] == n else self._read(n)
        if n + 1 < self.config.updates:
            self._ahead = n + 1, self._reader.submit(self._read, n + 1)
        return x_BCFHW

    def _read(self, n: int) -> Tensor:
        order = generator_for(self.config.seed, "interpolator", "data", n)
        indices = torch.randint(len(self.source), (self.config.batch,), generator=order).tolist()
        return self.source.latents([indices[i] for i in self._samples]).float()

    @torch.no_grad()
    def validate(self, n: int) -> dict[str, float]:
        """Held-out error of the averaged weights, that of linear interpolation, and their ratio: below 1 is better. Of
        a network that fills in space too, also those of space alone and of both."""
        found = self._heldout_errors(FRAMES, "heldout")
        if self.config.space:
            found |= self._heldout_errors(SPACE, "heldout_space") | self._heldout_errors(BOTH, "heldout_both")
        return found

    def _heldout_errors(self, strides: Strides, name: str) -> dict[str, float]:
        count, size, ranks = len(self.heldout), self.config.batch // self.ranks.data_size, self.ranks
        errors = torch.zeros(2, count)
        for start in range(ranks.data_rank * size, count, ranks.data_size * size):
            stop = min(start + size, count)
            x_BCFHW = self.heldout.latents(range(start, stop)).to(ranks.device, torch.float32)
            given = subsample(x_BCFHW, *strides)
            fills: tuple[Interpolate, ...] = (self.ema.module, interpolate_linearly)
            for row, fill in enumerate(fills):
                errors[row, start:stop] = missing_error(_fill(fill, given, strides), x_BCFHW, strides).cpu()
        mse, linear_mse = ranks.all_sum(errors).mean(1).tolist()
        return {f"{name}_mse": mse, f"{name}_linear_mse": linear_mse, f"{name}_ratio": mse / max(linear_mse, 1e-12)}

    def sample(self, folder: Path, n: int) -> None:
        """The held-out ratio tells enough; a finished interpolator is looked at in half-rate samples of a student."""

    def export(self, folder: Path) -> None:
        """`interpolator/`, by the first rank."""
        if not self.ranks.is_main:
            return
        with atomic_folder(folder / "interpolator") as writing:
            self.ema.module.save(writing)


def _fill(fill: Interpolate, given_BCFHW: Tensor, strides: Strides) -> Tensor:
    frame, space = strides
    return fill(given_BCFHW, frames=frame > 1, space=space > 1)


def missing_error(filled_BCFHW: Tensor, x_BCFHW: Tensor, strides: Strides = FRAMES) -> Tensor:
    """Mean square error over what `strides` leave out; per sample (B,)."""
    missing_FHW = torch.ones(x_BCFHW.shape[2:], dtype=torch.bool, device=x_BCFHW.device)
    subsample(missing_FHW[None, None], *strides).fill_(False)
    return (filled_BCFHW - x_BCFHW)[..., missing_FHW].square().flatten(1).mean(1)
