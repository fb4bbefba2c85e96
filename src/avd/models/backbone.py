"""A family's network, and what training and planning ask of it beside its velocity."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.utils.checkpoint import checkpoint

from avd.models.adapters import switched_as_now
from avd.types import Conditions

Recomputed = Literal["none", "selective", "full"]


@dataclass(frozen=True)
class ShardUnit:
    """Weights that are gathered together just before they compute (FSDP2). `float32`: they compute in float32."""

    module: nn.Module
    float32: bool = False


class Backbone(nn.Module):
    """A network as an `avd.types.Velocity`, in the convention of `avd.flow`: noise levels in, float32 velocities out.

    A family subclasses it, gives `forward` and `blocks`, and replaces what its own libraries do better. Frame i of an
    input of frame stride s stands at position s * i of the clip, whatever else is in the batch.
    """

    float32_names: frozenset[str] = frozenset()
    """Parts of the dotted names of weights that stay in float32, in whatever precision the others are stored."""

    def __init__(self, transformer: nn.Module) -> None:
        super().__init__()
        self.transformer = transformer
        """The module whose weights are trained, exported and adapted; it knows nothing of the flow."""
        self.compute_dtype: torch.dtype | None = None
        """Precision of its arithmetic; None is that of its weights."""

    def forward(self, x_BCFHW: Tensor, sigma_B: Tensor, conditions: Conditions, *, frame_stride: int = 1) -> Tensor:
        raise NotImplementedError

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """The repeated blocks, all of one size, in the order in which they compute."""
        raise NotImplementedError

    def shard_units(self) -> list[ShardUnit]:
        """What FSDP2 shards, each by itself; the weights outside of all units are sharded together with the root."""
        return [ShardUnit(block) for block in self.blocks]

    def store_frozen(self, dtype: torch.dtype) -> None:
        """Store the weights that are not trained in `dtype`, in place, but for those that stay in float32."""
        for name, parameter in self.transformer.named_parameters():
            if not parameter.requires_grad and self.float32_names.isdisjoint(name.split(".")):
                parameter.data = parameter.data.to(dtype)

    def recompute(self, which: Recomputed) -> None:
        """Keep only the inputs of all blocks ("full") or of every second one ("selective") for the backward pass, which
        then computes their activations again."""
        if which != "none":
            for block in self.blocks[:: 1 if which == "full" else 2]:
                block.forward = partial(run_recomputed, self.transformer, block.forward)

    def use_attention(self, backend: str | None) -> None:
        """Choose an attention backend that `Sizes.check_attention` accepts; None is the family's own."""
        assert backend is None

    def share_sequences(self, mesh: DeviceMesh) -> None:
        """Split each sequence over the ranks of the mesh's last dimension: each is given full inputs, makes full
        outputs and has a part of the gradient. `Sizes.check_context` says where that cannot be."""
        raise NotImplementedError

    def stream_blocks(self, device: torch.device) -> None:
        """Have each block's weights wait in the host's memory and come to `device` while it computes; the rest of the
        network stays there. For sampling; afterwards the network must not be moved."""
        self.to(device)
        for block in self.blocks:
            block.to("cpu")
            block.register_forward_pre_hook(lambda block, _: block.to(device) and None)
            block.register_forward_hook(lambda block, *_: block.to("cpu") and None)

    def compile_blocks(self) -> None:
        """Compile each block with torch.compile, in place."""
        for block in self.blocks:
            block.compile()


def run_recomputed(transformer: nn.Module, forward: Any, *inputs: Any) -> Any:
    """A block's forward of which only the inputs are kept; it runs again in the backward pass.

    By then another adapter may be on, so the one that is on now is switched on again. Blocks hold no randomness, so
    there is none to restore.
    """
    again = switched_as_now(transformer)
    return checkpoint(
        forward,
        *inputs,
        use_reentrant=False,
        preserve_rng_state=False,
        context_fn=lambda: (nullcontext(), again()),
    )
