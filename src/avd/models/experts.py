"""Two networks as one, each for a range of noise levels: the experts of a student that is trained in two phases.

    v(x, sigma) = v_high(x, sigma)  if sigma > boundary  else  v_low(x, sigma)

Each is a full network of the model's own sizes; one of them computes at a time. Their weights have the names that
diffusers gives the two in a pipeline: `transformer.` and `transformer_2.`, then the name in the network's own
transformer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from avd.models.backbone import Backbone
from avd.models.streams import TensorStream
from avd.models.weights import Weights
from avd.types import Conditions, Velocity

HIGH, LOW = "transformer", "transformer_2"
"""The parts of a pipeline that hold the expert of high noise and that of low noise."""


@dataclass(frozen=True)
class Experts:
    """See the module; `boundary` is a noise level in (0, 1), and all samples of a call lie on one side of it."""

    high: Velocity
    low: Velocity
    boundary: float

    def __call__(self, x_BCFHW: Tensor, sigma_B: Tensor, conditions: Conditions, **strides: int) -> Tensor:
        above = sigma_B > self.boundary
        expert = self.high if bool(above.any()) else self.low
        assert expert is self.low or bool(above.all()), "samples on both sides of the boundary"
        return expert(x_BCFHW, sigma_B, conditions, **strides)


class ExpertsBackbone(Backbone):
    """The same as a model's network, to be sampled with. Both experts are of one family and of equal sizes."""

    def __init__(self, high: Backbone, low: Backbone, boundary: float) -> None:
        super().__init__(nn.ModuleDict({HIGH: high.transformer, LOW: low.transformer}))
        self.float32_names = high.float32_names
        self._experts = Experts(high, low, boundary)  # a dataclass: the weights are registered once, by `transformer`

    def forward(self, x_BCFHW: Tensor, sigma_B: Tensor, conditions: Conditions, **strides: int) -> Tensor:
        return self._experts(x_BCFHW, sigma_B, conditions, **strides)

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return [block for expert in self._both for block in expert.blocks]

    def use_attention(self, backend: str | None) -> None:
        for expert in self._both:
            expert.use_attention(backend)

    def stream_blocks(self, device: torch.device) -> None:
        for expert in self._both:
            expert.stream_blocks(device)

    @property
    def _both(self) -> tuple[Backbone, Backbone]:
        high, low = self._experts.high, self._experts.low
        assert isinstance(high, Backbone) and isinstance(low, Backbone)
        return high, low


class ExpertsWeights:
    """The weights of two experts, as the `Weights` of one network."""

    def __init__(self, high: Weights, low: Weights) -> None:
        self._experts: Mapping[str, Weights] = {HIGH: high, LOW: low}
        self.shapes = {
            f"{part}.{name}": shape for part, each in self._experts.items() for name, shape in each.shapes.items()
        }

    def region(self, name: str, offset: tuple[int, ...], shape: tuple[int, ...]) -> Tensor:
        part, _, own = name.partition(".")
        return self._experts[part].region(own, offset, shape)


def join_streams(high: TensorStream, low: TensorStream) -> TensorStream:
    """The weights of two experts as one stream, those of high noise first."""
    experts = {HIGH: high, LOW: low}
    shapes = {f"{part}.{name}": shape for part, each in experts.items() for name, shape in each.shapes.items()}

    def make(name: str) -> Tensor | None:
        part, _, own = name.partition(".")
        return experts[part].make(own)

    return replace(low, shapes=shapes, make=make)


def stream_of(part: str, experts: TensorStream) -> TensorStream:
    """The weights of one of two experts, `HIGH` or `LOW`, by the names in its own transformer."""
    own = {name.removeprefix(f"{part}."): name for name in experts.shapes if name.startswith(f"{part}.")}
    shapes = {name: experts.shapes[there] for name, there in own.items()}
    return replace(experts, shapes=shapes, make=lambda name: experts.make(own[name]))
