"""Processes that train together: who is who, what they share, and how weights are sharded over them.

Started by `torchrun`, each process is one rank. Weights of every role are sharded block by block (FSDP2): a block's are
gathered just before it computes and let go after. Gradients are averaged over ranks. A process that is alone and
computes in float32 is the same code with nothing to shard and nobody to ask.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from avd.config import ComputeRecipe
from avd.models.backbone import Backbone
from avd.models.devices import pick_device
from avd.types import UserError


@dataclass(frozen=True)
class Ranks:
    """This process among `size` of them. `mesh` is None where weights are not sharded.

    Neighbours in `context` see the same clips, each a part of their sequences; None: every rank has clips of its own.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = torch.device("cpu")  # noqa: RUF009  (a device is a constant)
    mesh: DeviceMesh | None = None
    context: DeviceMesh | None = None

    @property
    def is_main(self) -> bool:
        """Whether it is this rank that writes."""
        return self.rank == 0

    @property
    def context_size(self) -> int:
        """Ranks that see the same clips as this one, itself among them."""
        return 1 if self.context is None else self.context.size(-1)

    @property
    def data_rank(self) -> int:
        """Which of the `data_size` shares of a batch this rank's clips are."""
        return self.rank // self.context_size

    @property
    def data_size(self) -> int:
        """Shares that a batch is divided into."""
        return self.size // self.context_size

    def samples(self, batch: int) -> range:
        """The samples of a batch that are this rank's. Raises UserError unless all shares are as large."""
        shares = self.data_size
        if batch % shares:
            raise UserError(
                f"training.batch is {batch}, in {shares} shares: choose a multiple of {shares}, or fewer processes"
            )
        share = batch // shares
        return range(self.data_rank * share, (self.data_rank + 1) * share)

    def all_sum(self, values: Tensor) -> Tensor:
        """The sum over ranks, on the CPU."""
        if self.size == 1:
            return values
        summed = values.detach().cpu().clone()
        dist.all_reduce(summed)
        return summed

    def all_max(self, values: Tensor) -> Tensor:
        """The largest over ranks of each value, on the CPU."""
        if self.size == 1:
            return values
        found = values.detach().cpu().clone()
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return found

    def global_mean(self, value_B: Tensor) -> Tensor:
        """The mean over the samples of all ranks. Its gradient is that of this rank's own samples, times the number
        of ranks: averaged over ranks, it is the gradient of the whole mean."""
        own = value_B.mean()
        whole = (self.all_sum(own.detach()) / self.size).to(own.device)
        return own + (whole - own.detach())

    def mean_metrics(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Metrics of the same names on all ranks, averaged."""
        values = self.all_sum(torch.tensor(list(metrics.values()), dtype=torch.float64)) / self.size
        return dict(zip(metrics, values.tolist(), strict=True))

    def any_rank(self, flag: bool) -> bool:
        """Whether it is true on any rank."""
        return bool(self.all_sum(torch.tensor(float(flag))) > 0)

    def barrier(self) -> None:
        """Until all ranks are here."""
        self.any_rank(False)

    def gather(self, tensor: Tensor) -> Tensor:
        """A tensor that may be sharded, gathered, on the CPU. All ranks must ask."""
        full = getattr(tensor, "full_tensor", None)
        return (tensor if full is None else full()).detach().cpu()


SINGLE_PROCESS = Ranks()
"""One process on the CPU."""


@contextmanager
def process_group(compute: ComputeRecipe) -> Iterator[Ranks]:
    """The ranks that `torchrun` started with this process, or this one alone.

    A process group that is there already is joined and left as it is. Raises UserError for a GPU that is asked for and
    not there, and for a shard size that does not divide the ranks.
    """
    rank, size, local = (int(os.environ.get(key, d)) for key, d in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0)))
    device = pick_device(compute.device, local)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if size == 1 and compute.dtype == "float32":
        if compute.shard not in (None, 1):
            raise UserError(f"compute.shard is {compute.shard}, with 1 process: start as many with torchrun")
        if compute.context > 1:
            raise UserError(f"compute.context is {compute.context}, with 1 process: start as many with torchrun")
        yield Ranks(device=device)
        return
    shard = compute.shard or size
    if size % shard:
        raise UserError(f"compute.shard is {shard}, with {size} processes: choose a divisor of {size}")
    if size % compute.context:
        raise UserError(f"compute.context is {compute.context}, with {size} processes: choose a divisor of {size}")
    ours = not dist.is_initialized()
    if ours:
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        if "WORLD_SIZE" in os.environ:
            dist.init_process_group(backend)
        else:
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    try:
        if shard == size:
            mesh = init_device_mesh(device.type, (size,), mesh_dim_names=("shard",))
        else:
            mesh = init_device_mesh(device.type, (size // shard, shard), mesh_dim_names=("replicate", "shard"))
        context = None
        if compute.context > 1:  # named as diffusers names them
            shape = (size // compute.context, 1, compute.context)
            context = init_device_mesh(device.type, shape, mesh_dim_names=("data", "ring", "ulysses"))
        yield Ranks(rank, size, device, mesh, context)
    finally:
        if ours:
            dist.destroy_process_group()


def shard(network: Backbone, ranks: Ranks, dtype: torch.dtype) -> None:
    """Put a network on its device; with a mesh, shard it unit by unit and let it compute in `dtype`, in place.

    Parameters stay what they are stored in and gradients are reduced in float32. The family says which units compute
    in float32 all the same.
    """
    if ranks.mesh is None:
        network.to(ranks.device)
        return
    mesh = ranks.mesh
    precise = MixedPrecisionPolicy(param_dtype=torch.float32, reduce_dtype=torch.float32, cast_forward_inputs=False)
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    # The root too lets go of its weights after use: a network that is only run forward, like the average, would go on
    # with those it gathered the first time.
    for unit in network.shard_units():
        fully_shard(unit.module, mesh=mesh, mp_policy=precise if unit.float32 else policy, reshard_after_forward=True)
    fully_shard(network, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
    network.compute_dtype = dtype
