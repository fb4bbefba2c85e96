"""The sizes of a model without its weights: what planning a run needs to know of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from avd.models.backbone import Backbone
from avd.types import UserError

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True)
class Linear:
    """`count` layers of one name and size, each applied to `rows` rows of a clip's forward."""

    name: str
    inputs: int
    outputs: int
    rows: int
    count: int = 1

    @property
    def flops(self) -> int:
        return 2 * self.inputs * self.outputs * self.rows * self.count


@dataclass(frozen=True)
class Sizes(ABC):
    """Sizes of a network and of what goes through it. A family subclasses it; `dataclasses.replace` changes a size."""

    latent_CFHW: tuple[int, int, int, int]
    """One clip's latents."""
    conditions: Mapping[str, tuple[int, ...]]
    """The shape of one prompt's tensor, by name."""
    layers: int
    """Repeated blocks, all of one size."""
    networks: int = field(default=1, kw_only=True)
    """Networks of these sizes that take turns: 2 for a student of two experts."""

    adapter_targets: ClassVar[tuple[str, ...]] = ()
    """Endings of the names of the linear layers that get an adapter where a recipe does not say."""

    @property
    def patch_side(self) -> int:
        """Rows and columns of latents that a token holds."""
        return 1

    @property
    def halves(self) -> bool:
        """Whether every second row and column of the latents divide into patches."""
        return not any(side % (2 * self.patch_side) for side in self.latent_CFHW[2:])

    def check_half_resolution(self, height: int) -> None:
        """Raise UserError unless the latents halve; the clips that they are of have `height` pixels."""
        if not self.halves:
            (rows, columns), multiple = self.latent_CFHW[2:], 2 * self.patch_side
            raise UserError(
                f"half resolution needs a height and width that are multiples of {height // rows * multiple} pixels "
                f"({multiple} latents), and these clips have {rows} x {columns} latents: choose another size, or leave "
                "half resolution out (half_resolution_stages: 0)"
            )

    def frames(self, stride: int = 1) -> int:
        """Latent frames of which every `stride`-th is kept."""
        return (self.latent_CFHW[1] - 1) // stride + 1

    @property
    @abstractmethod
    def width(self) -> int:
        """Values of a token between blocks."""

    @abstractmethod
    def tokens(self, stride: int = 1, space_stride: int = 1) -> int:
        """Tokens of a clip of which every `stride`-th latent frame is kept, and of these every `space_stride`-th row
        and column."""

    @abstractmethod
    def linear_layers(self, stride: int = 1, space_stride: int = 1) -> Iterator[Linear]:
        """Every linear layer by the ending of its name, with the rows that it is applied to in one clip's forward."""

    def largest_rank(self, targets: tuple[str, ...] | None) -> int | None:
        """The largest rank an adapter may have: the narrowest side of the layers it is added to, which is the rank of
        their own weights. None if no target (None: the family's) is among `linear_layers`."""
        ends = tuple(f".{target}" for target in targets or self.adapter_targets)
        layers = (layer for layer in self.linear_layers() if f".{layer.name}".endswith(ends))
        return min((min(layer.inputs, layer.outputs) for layer in layers), default=None)

    @abstractmethod
    def attention_flops(self, stride: int = 1, space_stride: int = 1) -> int:
        """Operations of one clip's attention, scores and sums; a multiply-add is two."""

    def check_attention(
        self, backend: str, context: int = 1, device: torch.device | None = None, *, training: bool = True
    ) -> None:
        """Raise UserError for an attention backend that the family does not know, that cannot share sequences over
        `context` ranks, or, with a device, that cannot compute there, in `training` with a gradient."""
        raise UserError(f"attention is {backend!r}, and this model family has one: leave it out (null in a recipe)")

    def check_context(self, ranks: int) -> None:
        """Raise UserError unless `ranks` ranks can share each sequence."""
        raise UserError(f"compute.context is {ranks}, and this model family cannot share sequences: set it to 1")

    def check_experts(self) -> None:
        """Raise UserError unless two networks of the family can be one student, each for a range of noise levels."""
        raise UserError("experts.train is set, and this model family has one network per model: set it to null")

    @abstractmethod
    def build(self) -> Backbone:
        """The network, or one of several, its weights not set: on the meta device it takes no memory."""

    def keeps_scores(self, attention: str | None) -> bool:
        """Whether an attention backend keeps the scores of all tokens with all tokens for the backward pass."""
        return False


@dataclass(frozen=True)
class Tiles:
    """How a picture is decoded in parts: squares of `side`, `stride` from one to the next, in pixels."""

    side: int
    stride: int


class OtherParts(ABC):
    """What a model has beside its network, without weights: on the meta device it takes no memory."""

    tiles: Tiles

    @abstractmethod
    def build_text_encoder(self) -> nn.Module:
        """Called with a prompt's tokens (1, L), it encodes the prompt."""

    @abstractmethod
    def build_encoder(self) -> nn.Module:
        """Called with pixels (B, 3, F, H, W), it gives latents."""

    @abstractmethod
    def build_decoder(self) -> nn.Module:
        """Called with latents (B, C, F', H', W'), it gives pixels, in one piece."""

    @property
    @abstractmethod
    def prompt_length(self) -> int:
        """Tokens of a prompt, L."""
