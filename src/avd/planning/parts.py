"""What a model's text encoder and VAE take: their weights, and memory and operations of running each once.

They are run on tensors that hold no data. Of a long clip a few frames are run: every further latent frame adds the
same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from avd.models.sizes import OtherParts
from avd.planning.activations import LiveBytes, move_here

_MEASURED_FRAMES = (3, 4)
"""Latent frames that are run to find what each further one adds: from the third on, all add the same."""


@dataclass(frozen=True)
class MeasuredPart:
    """A part's weights in bytes, and what it takes to run once."""

    weights: float
    activations: float
    flops: float


def measure_text_encoder(parts: OtherParts) -> MeasuredPart:
    """One prompt, padded to its full length, in bfloat16."""
    return _run(parts.build_text_encoder, torch.bfloat16, (1, parts.prompt_length), torch.long)


def measure_encoder(
    parts: OtherParts, clip: tuple[int, int, int], latent_CFHW: tuple[int, int, int, int]
) -> MeasuredPart:
    """A `clip` of so many frames, of so many pixels in height and width, to its latents, in float32."""
    frames, height, width = clip
    latent_frames = latent_CFHW[1]
    step = (frames - 1) // max(1, latent_frames - 1)  # frames of each latent frame but the first

    def run(count: int) -> MeasuredPart:
        shape = (1, 3, 1 + step * (count - 1), height, width)
        return _run(parts.build_encoder, torch.float32, shape, torch.float32)

    return _extrapolated(run, latent_frames)


def measure_decoder(parts: OtherParts, latent_CFHW: tuple[int, int, int, int]) -> MeasuredPart:
    """A clip's latents to pixels, in float32."""
    channels, frames, height, width = latent_CFHW

    def run(count: int) -> MeasuredPart:
        shape = (1, channels, count, height, width)
        return _run(parts.build_decoder, torch.float32, shape, torch.float32)

    return _extrapolated(run, frames)


def _extrapolated(run: Callable[[int], MeasuredPart], frames: int) -> MeasuredPart:
    """What `run` takes of `frames` latent frames."""
    if frames <= _MEASURED_FRAMES[1]:
        return run(frames)
    first, second = (run(count) for count in _MEASURED_FRAMES)
    more = frames - _MEASURED_FRAMES[0]
    return MeasuredPart(
        first.weights,
        first.activations + more * (second.activations - first.activations),
        first.flops + more * (second.flops - first.flops),
    )


def _hollow(build: Callable[[], nn.Module], dtype: torch.dtype) -> nn.Module:
    with torch.device("meta"):
        network = build().requires_grad_(False)
    for parameter in network.parameters():
        parameter.data = parameter.data.to(dtype)
    return network


def _run(
    build: Callable[[], nn.Module], dtype: torch.dtype, shape: tuple[int, ...], given: torch.dtype
) -> MeasuredPart:
    """What a network takes for one input, of a shape and a dtype."""
    network = _hollow(build, dtype)
    weights = sum(tensor.nbytes for tensor in (*network.parameters(), *network.buffers()))  # tied ones once
    with FakeTensorMode(), torch.no_grad():
        move_here(network)
        x, counter = torch.zeros(shape, dtype=given), FlopCounterMode(display=False)
        with counter, LiveBytes([*network.parameters(), *network.buffers(), x]) as live:
            network(x)
    return MeasuredPart(weights, live.peak, counter.get_total_flops())
