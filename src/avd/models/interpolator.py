"""The latent frame between two others, and the rows and columns between others, by a small U-Net.

A rollout that runs its noisiest stages at every second latent frame needs the others before its full-rate stages
(AVD, Sec. "half frame rate"). For neighbours a and b of the half-rate video the missing frame is

    m = (a + b) / 2 + r(a, b)

with a learnt residual r whose last layer starts at zero: an untrained network interpolates linearly. If it fills in
space too, the frames of stages at half resolution are first doubled in height and width, by the same network:

    d = up(a) + r(up(a), up(a))     except where a is given

where `up` interpolates linearly between given rows and columns, and repeats the last ones, past which nothing is given.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn
from torch.nn import functional

from avd.files import write_atomically, write_json
from avd.flow import subsample
from avd.models.weights import WeightFiles, check_fits
from avd.types import UserError

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
_GROUPS = 8
_MOST_LEVELS, _WIDEST = 8, 8192


@dataclass(frozen=True)
class InterpolatorConfig:
    """`channels` of the latents, the U-Net's `widths`, finest level first, each at half the height and width of the one
    before, and whether it fills in `space` beside frames.

    Raises UserError unless there is a channel and every width, of at most 8, is a multiple of 8 up to 8192.
    """

    channels: int
    widths: tuple[int, ...] = (32, 64, 128)
    space: bool = False

    def __post_init__(self) -> None:
        few = 1 <= len(self.widths) <= _MOST_LEVELS
        if self.channels < 1 or not few or any(w % _GROUPS or not 1 <= w <= _WIDEST for w in self.widths):
            raise UserError(
                f"interpolator of {self.channels} channels and widths {list(self.widths)}: at least 1 channel and 1 to "
                f"{_MOST_LEVELS} widths that are positive multiples of {_GROUPS}, at most {_WIDEST}, are needed"
            )
        if not isinstance(self.space, bool):
            raise UserError(f"an interpolator whose space is {self.space!r}: it must be true or false")

    def check_space(self) -> None:
        """Raise UserError unless the network fills in space."""
        if not self.space:
            raise UserError(
                "the interpolator fills in frames alone, and half resolution asks for rows and columns too: train one "
                "with `avd train interpolator --space`"
            )


class FrameInterpolator(nn.Module):
    """Half rate to full, latents (B, C, F, H, W) to (B, C, 2F - 1, H, W), and half resolution to full, H and W doubled:
    an `avd.sampling.rollout.Interpolate`.

    Normalisation is by groups of channels. With the batch norm of the method's released code, a frame would depend on
    the frames that happen to share its batch, and differ between training and evaluation mode; a student trained
    through the network needs one function with one gradient.

    The network is given which pair begins at the first frame of the clip. A causal video VAE encodes one picture into
    that frame and four into every other, so frame 1 lies nearer to frame 0 (2.5 pictures) than to frame 2 (4), where
    all later missing frames lie half-way. For the same reason it is not made symmetric in time by averaging over both
    orders of a pair: a latent frame depends on what came before it, and latents played backwards are nobody's video.

    A second mark, in networks that fill in space, says that this is what is asked of it.
    """

    def __init__(self, config: InterpolatorConfig) -> None:
        super().__init__()
        self.config = config
        widths = config.widths
        self.enter = _conv(2 * config.channels + (2 if config.space else 1), widths[0])
        self.down_blocks = nn.ModuleList(_Block(width) for width in widths[:-1])
        self.downs = nn.ModuleList(nn.Conv2d(fine, coarse, 3, 2, padding=1) for fine, coarse in pairwise(widths))
        self.bottom = _Block(widths[-1])
        self.ups = nn.ModuleList(_conv(coarse, fine) for fine, coarse in pairwise(widths))
        self.up_blocks = nn.ModuleList(_Block(width) for width in widths[:-1])
        last = _conv(widths[0], config.channels)
        for parameter in last.parameters():
            nn.init.zeros_(parameter)
        self.leave = nn.Sequential(nn.GroupNorm(_GROUPS, widths[0]), nn.SiLU(), last)

    def forward(self, x_BCFHW: Tensor, *, frames: bool = True, space: bool = False) -> Tensor:
        """The given values, unchanged to the bit, with what is missing: with `frames` one between each two frames, with
        `space` a row after each row and a column after each column. Any F >= 1, H and W, and any dtype.

        `x_BCFHW` must begin at the first frame of a clip. Raises UserError if its channels are not the network's, and
        for space that the network does not fill in.
        """
        channels, count = x_BCFHW.shape[1:3]
        if channels != self.config.channels:
            raise UserError(
                f"latents have {channels} channels, the interpolator was trained on {self.config.channels}: "
                "use the interpolator of the same model"
            )
        if space:
            self.config.check_space()
            x_BCFHW = self._fill_space(x_BCFHW)
        return self._fill_frames(x_BCFHW) if frames and count > 1 else x_BCFHW

    def _fill_space(self, x_BCFHW: Tensor) -> Tensor:
        filled = _double(x_BCFHW).transpose(1, 2).flatten(0, 1)
        mark = torch.zeros_like(filled[:, :1])
        frames = torch.cat([filled, filled, mark, mark + 1], 1)
        residual = self._residual(frames.to(self.enter.weight.dtype)).to(x_BCFHW.dtype)
        filled = (filled + residual).unflatten(0, (len(x_BCFHW), -1)).transpose(1, 2)
        subsample(filled, space_stride=2).copy_(x_BCFHW)
        return filled

    def _fill_frames(self, x_BCFHW: Tensor) -> Tensor:
        before_BCPHW, after_BCPHW = x_BCFHW[:, :, :-1], x_BCFHW[:, :, 1:]
        first_BCPHW = torch.zeros_like(before_BCPHW[:, :1])
        first_BCPHW[:, :, 0] = 1
        marks = [first_BCPHW, torch.zeros_like(first_BCPHW)] if self.config.space else [first_BCPHW]
        pairs = torch.cat([before_BCPHW, after_BCPHW, *marks], 1).transpose(1, 2).flatten(0, 1)
        residual = self._residual(pairs.to(self.enter.weight.dtype))
        residual_BCPHW = residual.unflatten(0, (len(x_BCFHW), -1)).transpose(1, 2)
        between_BCPHW = (before_BCPHW + after_BCPHW) / 2 + residual_BCPHW.to(x_BCFHW.dtype)
        return _interleave(x_BCFHW, between_BCPHW)

    def _residual(self, pairs: Tensor) -> Tensor:
        """r of two latents and the marks, (N, 2 C + 1 or 2, H, W), as (N, C, H, W)."""
        height, width = pairs.shape[-2:]
        multiple = 2 ** len(self.downs)
        x = self.enter(functional.pad(pairs, (0, -width % multiple, 0, -height % multiple), mode="replicate"))
        skips = []
        for block, down in zip(self.down_blocks, self.downs, strict=True):
            skips.append(block(x))
            x = down(skips[-1])
        x = self.bottom(x)
        for up, block in reversed(list(zip(self.ups, self.up_blocks, strict=True))):
            x = block(up(functional.interpolate(x, scale_factor=2.0)) + skips.pop())
        return self.leave(x)[..., :height, :width]

    def save(self, folder: Path) -> None:
        """Write `config.json` and `model.safetensors` into `folder`, each atomically."""
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        write_atomically(folder / WEIGHTS_FILE, to_safetensors(weights))
        write_json(folder / CONFIG_FILE, asdict(self.config))

    @classmethod
    def load(cls, folder: Path) -> FrameInterpolator:
        """A saved interpolator, on the CPU, in float32 and frozen; gradients still pass through it to its input.

        Raises UserError as `read_config`.
        """
        interpolator = cls(cls.read_config(folder))
        with _naming_damage(folder):
            interpolator.load_state_dict(load_file(folder / WEIGHTS_FILE))
        return interpolator.eval().requires_grad_(False)

    @classmethod
    def read_config(cls, folder: Path) -> InterpolatorConfig:
        """The config of a saved interpolator whose weights fit it by their headers; no weights are read.

        Raises UserError if there is none in `folder` or it is damaged.
        """
        if not (folder / CONFIG_FILE).exists():
            raise UserError(
                f"no interpolator at {folder}: it has no {CONFIG_FILE}; make one with avd train interpolator"
            )
        with _naming_damage(folder):
            values = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
            config = InterpolatorConfig(**{**values, "widths": tuple(values["widths"])})
            with torch.device("meta"):
                check_fits(cls(config), WeightFiles([folder / WEIGHTS_FILE]).shapes, exactly=True)
        return config


@contextmanager
def _naming_damage(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"the interpolator {folder} is damaged ({reason}): copy or train it again") from error


class _Block(nn.Module):
    """Two convolutions beside an untouched path, normalised before each."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.GroupNorm(_GROUPS, width),
            nn.SiLU(),
            _conv(width, width),
            nn.GroupNorm(_GROUPS, width),
            nn.SiLU(),
            _conv(width, width),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


def interpolate_linearly(x_BCFHW: Tensor, *, frames: bool = True, space: bool = False) -> Tensor:
    """What an untrained network makes of it."""
    if space:
        x_BCFHW = _double(x_BCFHW)
    if not frames:
        return x_BCFHW
    middle = (x_BCFHW[:, :, :-1] + x_BCFHW[:, :, 1:]) / 2
    return _interleave(x_BCFHW, middle)


def _interleave(x_BCFHW: Tensor, between_BCPHW: Tensor) -> Tensor:
    """Frames with those between each two."""
    pairs = torch.stack([x_BCFHW[:, :, :-1], between_BCPHW], 3).flatten(2, 3)
    return torch.cat([pairs, x_BCFHW[:, :, -1:]], 2)


def _double(x_BCFHW: Tensor) -> Tensor:
    """The given rows and columns with the mean of the two around it after each, and after the last one that one."""
    for side in (3, 4):
        given = x_BCFHW.movedim(side, 0)
        after = torch.cat([given[1:], given[-1:]])
        x_BCFHW = torch.stack([given, (given + after) / 2], 1).flatten(0, 1).movedim(0, side)
    return x_BCFHW


def _conv(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)
