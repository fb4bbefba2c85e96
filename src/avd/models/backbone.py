"""A family's network, and what training and planning ask of it beside its velocity."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
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
COMPILED_VERSIONS = 64
"""Versions of a block that torch.compile may make."""


@dataclass(frozen=True)
class ShardUnit:
    """Weights that are gathered together just before they compute (FSDP2). `float32`: they compute in float32.

    Several modules of a unit are gathered before the first of them computes and let go after the last. The weights in
    `Backbone.float32_names` are left out of units that do not compute in float32.
    """

    modules: tuple[nn.Module, ...]
    float32: bool = False


class Backbone(nn.Module):
    """A network as an `avd.types.Velocity`, in the convention of `avd.flow`: noise levels in, float32 velocities out.

    A family subclasses it, gives `forward`, `blocks` and `first_blocks`, and replaces what its own libraries do better.
    Frame i of an input of frame stride s stands at position s * i of the clip, whatever else is in the batch; likewise
    with rows and columns.
    """

    float32_names: frozenset[str] = frozenset()
    """Parts of the dotted names of weights that are stored and compute in float32, whatever the others do."""

    def __init__(self, transformer: nn.Module) -> None:
        super().__init__()
        self.transformer = transformer
        """The module whose weights are trained, exported and adapted; it knows nothing of the flow."""
        self.compute_dtype: torch.dtype | None = None
        """Precision of its arithmetic; None is that of its weights."""

    def forward(
        self,
        x_BCFHW: Tensor,
        sigma_B: Tensor,
        conditions: Conditions,
        *,
        frame_stride: int = 1,
        space_stride: int = 1,
    ) -> Tensor:
        raise NotImplementedError

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """The repeated blocks, all of one size, in the order in which they compute."""
        raise NotImplementedError

    @contextmanager
    def first_blocks(self, count: int) -> Iterator[None]:
        """Within it, only so many of the blocks compute, and what comes after them."""
        raise NotImplementedError
        yield

    def features(
        self, x_BCFHW: Tensor, sigma_B: Tensor, conditions: Conditions, blocks: Sequence[int], **strides: int
    ) -> tuple[Tensor, ...]:
        """What the blocks of these numbers, from 0, make of an input: (B, tokens, width) each, in float32.

        `strides` are those of `forward`. Blocks after the last of them do not compute. Gradients pass to the input.
        Ranks that share sequences would have a part of the tokens each.
        """
        found: dict[int, Tensor] = {}

        def keep(i: int, block: nn.Module, inputs: Any, output: Tensor) -> None:
            found[i] = output

        handles = [self.blocks[i].register_forward_hook(partial(keep, i)) for i in blocks]
        try:
            with self.first_blocks(max(blocks) + 1):
                velocity = self.forward(x_BCFHW, sigma_B, conditions, **strides)
        finally:
            for handle in handles:
                handle.remove()
        # FSDP gathers a unit's weights again for the way back where the output of its last module needs a gradient, and
        # a unit may end after the last block.
        nothing = 0.0 * velocity.mean()
        return tuple(found[i].float() + nothing for i in blocks)

    def shard_units(self) -> list[ShardUnit]:
        """What FSDP2 shards, each by itself; the weights outside of all units are sharded together with the root, in
        float32 if the network has `float32_names`."""
        return [ShardUnit((block,)) for block in self.blocks]

    def stays_in_float32(self, name: str) -> bool:
        """Whether the weight of this dotted name is one of `float32_names`."""
        return not self.float32_names.isdisjoint(name.split("."))

    def store_frozen(self, dtype: torch.dtype) -> None:
        """Store the weights that are not trained in `dtype`, in place, but for those that stay in float32."""
        for name, parameter in self.transformer.named_parameters():
            if not parameter.requires_grad and not self.stays_in_float32(name):
                parameter.data = parameter.data.to(dtype)

    def recompute(self, which: Recomputed) -> None:
        """Keep only the inputs of all blocks ("full") or of every second one ("selective") for the backward pass, which
        then computes their activations again.

        Compile blocks before and shard them after: what is computed again is then the compiled block, and its weights
        are gathered once for both.
        """
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
        """Compile each block's computation with torch.compile, in place; hooks on blocks stay outside.

        All blocks share one code object, and so does every role: each adapter, with and without gradient, at full and
        at half rate, is a version of it. Past PyTorch's limit of 8 versions it would run uncompiled without a word.
        """
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, COMPILED_VERSIONS)
        for block in self.blocks:
            block.forward = torch.compile(block.forward)


def run_recomputed(transformer: nn.Module, forward: Any, *inputs: Any) -> Any:
    """A block's forward of which only the inputs are kept; it runs again in the backward pass.

    By then another adapter may be on, so the one that is on now is switched on again. Blocks hold no randomness, so
    there is none to restore.
    """
    if not torch.is_grad_enabled():
        return forward(*inputs)
    again = switched_as_now(transformer)
    return checkpoint(
        forward,
        *inputs,
        use_reentrant=False,
        preserve_rng_state=False,
        context_fn=lambda: (nullcontext(), again()),
    )
