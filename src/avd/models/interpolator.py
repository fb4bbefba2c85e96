"""The latent frame between two others, by a small U-Net.

A rollout that runs its noisiest stages at every second latent frame needs the others before its full-rate stages
(AVD, Sec. "half frame rate"). For neighbours a and b of the half-rate video the missing frame is

    m = (a + b) / 2 + r(a, b)

with a learnt residual r whose last layer starts at zero: an untrained network interpolates linearly.
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
from avd.models.weights import WeightFiles, check_fits
from avd.types import UserError

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
_GROUPS = 8
_MOST_LEVELS, _WIDEST = 8, 8192


@dataclass(frozen=True)
class InterpolatorConfig:
    """`channels` of the latents, and the U-Net's `widths`, finest level first; each level halves height and width.

    Raises UserError unless there is a channel and every width, of at most 8, is a multiple of 8 up to 8192.
    """

    channels: int
    widths: tuple[int, ...] = (32, 64, 128)

    def __post_init__(self) -> None:
        few = 1 <= len(self.widths) <= _MOST_LEVELS
        if self.channels < 1 or not few or any(w % _GROUPS or not 1 <= w <= _WIDEST for w in self.widths):
            raise UserError(
                f"interpolator of {self.channels} channels and widths {list(self.widths)}: at least 1 channel and 1 to "
                f"{_MOST_LEVELS} widths that are positive multiples of {_GROUPS}, at most {_WIDEST}, are needed"
            )


class FrameInterpolator(nn.Module):
    """Half rate to full: latents (B, C, F, H, W) to (B, C, 2F - 1, H, W), an `avd.sampling.rollout.Interpolate`.

    Normalisation is by groups of channels. With the batch norm of the method's released code, a frame would depend on
    the frames that happen to share its batch, and differ between training and evaluation mode; a student trained
    through the network needs one function with one gradient.

    The network is given which pair begins at the first frame of the clip. A causal video VAE encodes one picture into
    that frame and four into every other, so frame 1 lies nearer to frame 0 (2.5 pictures) than to frame 2 (4), where
    all later missing frames lie half-way. For the same reason it is not made symmetric in time by averaging over both
    orders of a pair: a latent frame depends on what came before it, and latents played backwards are nobody's video.
    """

    def __init__(self, config: InterpolatorConfig) -> None:
        super().__init__()
        self.config = config
        widths = config.widths
        self.enter = _conv(2 * config.channels + 1, widths[0])
        self.down_blocks = nn.ModuleList(_Block(width) for width in widths[:-1])
        self.downs = nn.ModuleList(nn.Conv2d(fine, coarse, 3, 2, padding=1) for fine, coarse in pairwise(widths))
        self.bottom = _Block(widths[-1])
        self.ups = nn.ModuleList(_conv(coarse, fine) for fine, coarse in pairwise(widths))
        self.up_blocks = nn.ModuleList(_Block(width) for width in widths[:-1])
        last = _conv(widths[0], config.channels)
        for parameter in last.parameters():
            nn.init.zeros_(parameter)
        self.leave = nn.Sequential(nn.GroupNorm(_GROUPS, widths[0]), nn.SiLU(), last)

    def forward(self, x_BCFHW: Tensor) -> Tensor:
        """The given frames, unchanged to the bit, with one between each two. Any F >= 1, H and W, and any dtype.

        `x_BCFHW` must begin at the first frame of a clip. Raises UserError if its channels are not the network's.
        """
        batch, channels, frames = x_BCFHW.shape[:3]
        if channels != self.config.channels:
            raise UserError(
                f"latents have {channels} channels, the interpolator was trained on {self.config.channels}: "
                "use the interpolator of the same model"
            )
        if frames == 1:
            return x_BCFHW
        before_BCPHW, after_BCPHW = x_BCFHW[:, :, :-1], x_BCFHW[:, :, 1:]
        first_BCPHW = torch.zeros_like(before_BCPHW[:, :1])
        first_BCPHW[:, :, 0] = 1
        pairs = torch.cat([before_BCPHW, after_BCPHW, first_BCPHW], 1).transpose(1, 2).flatten(0, 1)
        residual_BCPHW = self._residual(pairs.to(self.enter.weight.dtype)).unflatten(0, (batch, -1)).transpose(1, 2)
        between_BCPHW = (before_BCPHW + after_BCPHW) / 2 + residual_BCPHW.to(x_BCFHW.dtype)
        return torch.cat([torch.stack([before_BCPHW, between_BCPHW], 3).flatten(2, 3), x_BCFHW[:, :, -1:]], 2)

    def _residual(self, pairs: Tensor) -> Tensor:
        """r of (B P, 2 C + 1, H, W), whose last channel is the mark of a first pair, as (B P, C, H, W)."""
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


def _conv(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)
