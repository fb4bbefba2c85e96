"""A tiny decoder in place of the VAE's: TAEHV (github.com/madebyollin/taehv, MIT) as published for Wan's latents.

A 2-D network of 3x3 convolutions goes through the clip frame by frame, in three stages that each double both sides. A
stage has three residual blocks that see, beside a frame's features, their own input of the frame before (zeros at the
start), and a 1x1 convolution that makes one frame into several. It takes whitened latents as they are, without the
VAE's mean and standard deviation, and gives values in [0, 1]. With T frames to a latent frame, the first T - 1 frames
are dropped, so that n + 1 latent frames are T n + 1 frames.

    0  3 tanh(z / 3)        3-5    blocks, doubling at 6, frames at 7, convolution 8       22  convolution to 3 p^2
    1  convolution          9-11   blocks, doubling at 12, frames at 13, convolution 14        channels: p x p pixels
    2  ReLU                 15-17  blocks, doubling at 18, frames at 19, convolution 20, ReLU

The numbers are those of the tensors' names in the published files, `decoder.3.conv.0.weight` for example.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from avd.types import UserError

_PREFIX = "decoder."
_GROWERS = (7, 13, 19)


class TinyDecoder(nn.Module):
    """`widths` are the channels of the three stages and of the end, `frames` how many each stage makes of one, and
    `patch` the side of the square of pixels that the last convolution gives for each position."""

    def __init__(
        self, channels: int, widths: tuple[int, int, int, int], frames: tuple[int, int, int], patch: int
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [_Squash(), _conv(channels, widths[0]), nn.ReLU()]
        for width, after, count in zip(widths, widths[1:], frames, strict=False):
            layers += [_Block(width) for _ in range(3)]
            layers += [nn.Upsample(scale_factor=2), _Grow(width, count), _conv(width, after, bias=False)]
        self.decoder = nn.Sequential(*layers, nn.ReLU(), _conv(widths[-1], 3 * patch * patch))
        self._patch, self._dropped = patch, math.prod(frames) - 1

    @classmethod
    def load(cls, file: Path, vae: Mapping[str, Any]) -> TinyDecoder:
        """From a safetensors file; what it holds beside the decoder is left alone.

        `vae` is the config of the VAE that it stands in for. Raises UserError for a file that is no such decoder, or
        one of other latents.
        """
        try:
            tensors = load_file(file)
            tensors = {name: tensor.float() for name, tensor in tensors.items() if name.startswith(_PREFIX)}
            strides = _strides(tensors, vae["scale_factor_temporal"])
            out, channels = len(tensors["decoder.22.weight"]), tensors["decoder.1.weight"].shape[1]
            patch = math.isqrt(out // 3)
            if channels != vae["z_dim"] or 8 * patch != vae["scale_factor_spatial"]:
                raise ValueError(
                    f"it decodes {channels} channels to {8 * patch} x {8 * patch} pixels, and the model's latents "
                    f"have {vae['z_dim']} for a side of {vae['scale_factor_spatial']}"
                )
            first, second, third, last = (len(tensors[f"decoder.{i}.weight"]) for i in (1, 8, 14, 20))
            with torch.device("meta"):
                network = cls(channels, (first, second, third, last), strides, patch)
            network.load_state_dict(tensors, assign=True)
        except (OSError, SafetensorError, KeyError, ValueError, RuntimeError) as error:
            reason = str(error).partition("\n")[0].rstrip(":")
            reason = f"it lacks {reason}" if isinstance(error, KeyError) else reason
            raise UserError(
                f"{file} is no tiny decoder of this model ({reason}): name another safetensors file"
            ) from error
        return network.eval().requires_grad_(False)

    @torch.no_grad()
    def decode_video(self, latents_BCFHW: Tensor) -> np.ndarray:
        """Whitened latents to uint8 (B, F, H, W, 3), frame by frame: memory does not grow with the clip's length."""
        frames = [self._to_uint8(frame) for frame in self.stream(latents_BCFHW.unbind(2))]
        return np.stack(frames, axis=1)

    def stream(self, latents: Iterator[Tensor] | tuple[Tensor, ...]) -> Iterator[Tensor]:
        """Frames (B, 3, H, W) in [0, 1] of latent frames (B, C, H', W'), each as soon as it is known."""
        memory: dict[int, Tensor] = {}
        made = 0
        like = next(self.parameters())
        for latent in latents:
            for frame in self._run(latent.to(like), 0, memory):
                made += 1
                if made > self._dropped:
                    yield nn.functional.pixel_shuffle(frame, self._patch).clamp(0, 1)

    def _run(self, x: Tensor, start: int, memory: dict[int, Tensor]) -> Iterator[Tensor]:
        """What the layers from `start` on make of one frame; `memory` holds the last input of each block."""
        for i in range(start, len(self.decoder)):
            layer = self.decoder[i]
            if isinstance(layer, _Grow):
                for frame in layer(x):
                    yield from self._run(frame, i + 1, memory)
                return
            if isinstance(layer, _Block):
                before, memory[i] = memory.get(i, torch.zeros_like(x)), x
                x = layer(x, before)
            else:
                x = layer(x)
        yield x

    @staticmethod
    def _to_uint8(frame: Tensor) -> np.ndarray:
        return (frame.float() * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()


def _strides(tensors: dict[str, Tensor], wanted: int) -> tuple[int, int, int]:
    """Frames that each stage makes of one. Of the first ones, a file may have weights for more than the `wanted` frames
    in all: then the weights of their last frame are used. Raises ValueError if it makes fewer."""
    strides = []
    for i in _GROWERS:
        weight = tensors[f"decoder.{i}.conv.weight"]
        strides.append(len(weight) // weight.shape[1])
    for k, i in enumerate(_GROWERS):
        name = f"decoder.{i}.conv.weight"
        if math.prod(strides) > wanted and strides[k] > 1:
            strides[k], tensors[name] = 1, tensors[name][-tensors[name].shape[1] :]
    if math.prod(strides) != wanted:
        raise ValueError(f"it makes {math.prod(strides)} frames of a latent frame, and the model has {wanted}")
    first, second, third = strides
    return first, second, third


def _conv(inputs: int, outputs: int, *, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=bias)


class _Squash(nn.Module):
    def forward(self, z: Tensor) -> Tensor:
        return 3 * torch.tanh(z / 3)


class _Block(nn.Module):
    """Residual; sees a frame's features and those of the frame before."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            _conv(2 * width, width), nn.ReLU(), _conv(width, width), nn.ReLU(), _conv(width, width)
        )

    def forward(self, x: Tensor, before: Tensor) -> Tensor:
        return torch.relu(self.conv(torch.cat([x, before], 1)) + x)


class _Grow(nn.Module):
    """One frame's features to those of `count` frames, in order."""

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width * count, 1, bias=False)
        self._count = count

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.conv(x).chunk(self._count, 1)
