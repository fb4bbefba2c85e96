"""How a transformer's blocks compute: what they keep for the backward pass, with which attention, by how many ranks."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import Any, Literal

from diffusers import ContextParallelConfig, WanTransformer3DModel
from diffusers.models.attention_dispatch import AttentionBackendName, attention_backend
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.utils.checkpoint import checkpoint

from avd.models.adapters import switched_as_now
from avd.types import UserError

Recomputed = Literal["none", "selective", "full"]


def recompute_blocks(transformer: WanTransformer3DModel, which: Recomputed) -> None:
    """Keep only the inputs of all blocks ("full") or of every second one for the backward pass, which then computes
    their activations again."""
    if which == "none":
        return
    chosen = set(transformer.blocks[:: 1 if which == "full" else 2])
    transformer.enable_gradient_checkpointing(partial(_run_block, transformer, chosen))


def _run_block(transformer: WanTransformer3DModel, chosen: set[nn.Module], block: nn.Module, *inputs: Any) -> Any:
    if block not in chosen:
        return block(*inputs)
    # By the time of the backward pass another adapter is on; blocks hold no randomness, so there is none to restore.
    again = switched_as_now(transformer)
    return checkpoint(
        block,
        *inputs,
        use_reentrant=False,
        preserve_rng_state=False,
        context_fn=lambda: (nullcontext(), again()),
    )


def use_attention(transformer: WanTransformer3DModel, backend: str | None) -> None:
    """Choose diffusers' attention backend; None is its own choice. Raises UserError for one that cannot be used."""
    if backend is None:
        return
    try:
        with attention_backend("native"):  # whose end restores what networks without a choice of their own use
            transformer.set_attention_backend(backend)
    except (ValueError, RuntimeError, ImportError) as error:
        known = ", ".join(sorted(name.value for name in AttentionBackendName))
        reason = str(error).partition("\n")[0]
        raise UserError(f"compute.attention is {backend!r}: {reason}; diffusers knows {known}") from error


def share_sequences(transformer: WanTransformer3DModel, mesh: DeviceMesh) -> None:
    """Split each sequence over the ranks of the mesh's last dimension, "ulysses" (arXiv 2309.14509).

    Every rank is given whole inputs and makes whole outputs; of a gradient each has a part, and their sum is it.
    Raises UserError if the attention heads cannot be shared out.
    """
    ranks, heads = mesh.size(-1), transformer.config.num_attention_heads
    if heads % ranks:
        raise UserError(f"compute.context is {ranks}, and the model has {heads} attention heads: choose a divisor")
    try:
        transformer.enable_parallelism(config=ContextParallelConfig(ulysses_degree=ranks, mesh=mesh))
    except ValueError as error:  # of an attention backend that cannot do it
        raise UserError(f"compute.context is {ranks}: {error}") from error
