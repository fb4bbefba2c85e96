"""Networks and optimizers as named tensors, for checkpoints, and back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from avd.engine.checkpoint import SavedTensors
from avd.engine.sharding import shard_like


class HasParameters(Protocol):
    """A module, or anything else that names its parameters."""

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]: ...


def pack_module(prefix: str, module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers."""
    return {f"{prefix}.{k}": v for k, v in module.state_dict().items()}


def unpack_module(prefix: str, module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Raises RuntimeError if they are not the module's."""
    module.load_state_dict({k: tensors[f"{prefix}.{k}"] for k in _under(prefix, tensors)})


def pack_weights(prefix: str, network: HasParameters) -> dict[str, Tensor]:
    """Parameters, sharded or not."""
    return {f"{prefix}.{name}": p for name, p in network.named_parameters()}


@torch.no_grad()
def unpack_weights(prefix: str, network: HasParameters, tensors: Mapping[str, Tensor]) -> None:
    """Each rank reads its own shards. Raises KeyError or RuntimeError if they are not the network's."""
    parameters = dict(network.named_parameters())
    if parameters.keys() != set(_under(prefix, tensors)):
        raise KeyError(f"{prefix} holds other weights")
    for name, parameter in parameters.items():
        parameter.copy_(_read_like(tensors, f"{prefix}.{name}", parameter))


def pack_optimizer(prefix: str, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The per-parameter state, flat, named by the parameter's index. Learning rates belong to the recipe, not here.

    Moments of 8 bits are packed as the numbers they stand for, to be quantised again: blocks end where shards do.
    """
    state = optimizer.state_dict()["state"]
    return {f"{prefix}.{i}.{k}": _numbers(v) for i, slots in state.items() for k, v in slots.items()}


def unpack_optimizer(prefix: str, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Raises KeyError, RuntimeError or ValueError if the state is of other parameters."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key in _under(prefix, tensors):
        index, slot = key.split(".", 1)
        value = _read_like(tensors, f"{prefix}.{key}", parameters[int(index)])
        state.setdefault(int(index), {})[slot] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    new_buffer = getattr(optimizer, "_new_buffer", None)  # torchao's, of as many bits as the optimizer keeps
    if new_buffer is not None:
        for parameter, slots in optimizer.state.items():
            for slot in ("exp_avg", "exp_avg_sq"):
                slots[slot] = new_buffer(parameter, slot == "exp_avg").copy_(slots[slot])


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> list[str]:
    return [k.removeprefix(prefix + ".") for k in tensors if k.startswith(prefix + ".")]


def _numbers(value: Any) -> Tensor:
    """A state as a plain tensor, or a sharded plain one."""
    local = value.to_local() if isinstance(value, DTensor) else torch.as_tensor(value)
    if not hasattr(local, "codes"):  # what torchao's quantised states hold
        return torch.as_tensor(value)
    return shard_like(value, local.dequantize()) if isinstance(value, DTensor) else local.dequantize()


def _read_like(tensors: Mapping[str, Tensor], name: str, like: Tensor) -> Tensor:
    """A saved tensor; where it belongs to a sharded one, sharded as that is, each rank having read its own part."""
    if not (isinstance(like, DTensor) and isinstance(tensors, SavedTensors) and tensors.shape(name) == like.shape):
        return tensors[name]
    shape, offset = compute_local_shape_and_global_offset(like.shape, like.device_mesh, like.placements)
    return shard_like(like, tensors.region(name, tuple(offset), tuple(shape)).to(like.device))
