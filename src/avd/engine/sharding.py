"""Sharded networks and tensors: filled shard by shard, and collected, one tensor at a time, on the first rank.

Networks are built and sharded without memory and get their weights afterwards, each rank its own shards and no others.
A rank reads the region of each tensor that is its shard, straight into the dtype that the network keeps it in; the most
that is in memory besides the shards is one of these regions. Networks that begin alike are copied shard by shard.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from avd.models.weights import Weights


@torch.no_grad()
def fill(network: nn.Module, weights: Weights, device: torch.device, names: Callable[[str], str]) -> None:
    """Give every parameter of `network`, in place, its values from `weights`.

    `names` says what a parameter is called there.
    """

    def read(name: str, parameter: Tensor) -> Tensor:
        shape, offset = tuple(parameter.shape), (0,) * parameter.ndim
        if isinstance(parameter, DTensor):
            shape, offset = compute_local_shape_and_global_offset(
                parameter.shape, parameter.device_mesh, parameter.placements
            )
        own = torch.empty(shape, dtype=parameter.dtype, device=device)
        if own.numel():
            own.copy_(weights.region(names(name), tuple(offset), tuple(shape)))
        return own

    _assign(network, {name: read(name, parameter) for name, parameter in network.named_parameters()}, device)


@torch.no_grad()
def fill_like(network: nn.Module, other: nn.Module, device: torch.device) -> None:
    """Give every parameter of `network`, in place, the values that `other` has, which is sharded as it is."""
    others = dict(other.named_parameters())

    def copy(name: str, parameter: Tensor) -> Tensor:
        values = others[name]
        local = values.to_local() if isinstance(values, DTensor) else values
        return local.detach().to(device, parameter.dtype, copy=True)

    _assign(network, {name: copy(name, parameter) for name, parameter in network.named_parameters()}, device)


def _assign(network: nn.Module, local: Mapping[str, Tensor], device: torch.device) -> None:
    parameters = dict(network.named_parameters())
    state = {
        name: shard_like(parameters[name], values) if isinstance(parameters[name], DTensor) else values
        for name, values in local.items()
    }
    network.load_state_dict(state, strict=False, assign=True)
    network.to(device)  # buffers, which have values from the start
    assert not any(tensor.is_meta for tensor in (*network.parameters(), *network.buffers()))


def shard_like(like: Tensor, local: Tensor) -> DTensor:
    """A tensor sharded as `like` is, of which this rank has the part `local`."""
    assert isinstance(like, DTensor)
    return DTensor.from_local(
        local, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )


@torch.no_grad()
def collect(tensor: Tensor, rank: int) -> Tensor | None:
    """A tensor that may be sharded, complete, on the CPU of rank 0; None on every other `rank`. All ranks must ask.

    The other ranks of rank 0's replica send it their parts and receive nothing. Shards are along the first dimension,
    as FSDP has them.
    """
    if not isinstance(tensor, DTensor):
        return tensor.detach().cpu() if rank == 0 else None
    *copies, placement = tensor.placements
    assert isinstance(placement, Shard) and placement.dim == 0 and not any(isinstance(p, Shard) for p in copies)
    senders = tensor.device_mesh.mesh.reshape(-1, tensor.device_mesh.size(-1))[0].tolist()
    assert senders[0] == 0
    if rank not in senders:
        return None
    own = tensor.to_local().detach().cpu().contiguous()
    if rank:
        if own.numel():
            dist.send(own, 0)
        return None
    full = torch.empty(tensor.shape, dtype=own.dtype)
    # As `torch.chunk` divides: the last parts may be smaller, or missing.
    for sender, part in zip(senders, full.split(-(-len(full) // len(senders))), strict=False):
        if sender == 0:
            part.copy_(own)
        else:
            dist.recv(part, sender)
    return full
