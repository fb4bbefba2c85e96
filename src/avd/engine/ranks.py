"""Processes that train together: who is who, what they share, and how weights are sharded over them.

Started by `torchrun`, each process is one rank. Weights of every role are sharded block by block (FSDP2): a block's are
gathered just before it computes and let go after. Gradients are averaged over ranks. A process that is alone and
computes in float32 is the same code with nothing to shard and nobody to ask.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from threading import Thread
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.distributed_c10d import _set_pg_timeout
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from avd.config import ComputeRecipe
from avd.engine.sharding import collect
from avd.models.backbone import Backbone
from avd.models.devices import Launch, pick_device, read_launch
from avd.types import UserError

T = TypeVar("T")
_SECONDS_BETWEEN_SIGNS = 1.0
"""Time between signs of life from a rank that others wait for."""


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

    @property
    def shard_rank(self) -> int:
        """Which of the `shard_size` shards of the weights this rank holds."""
        return 0 if self.mesh is None else self.mesh.get_local_rank("shard")

    @property
    def shard_size(self) -> int:
        """Shards that a copy of the weights is divided into."""
        return 1 if self.mesh is None else self.mesh.size(-1)

    def samples(self, batch: int) -> range:
        """The samples of a batch that are this rank's; see `clips_per_rank`."""
        share, rest = divmod(batch, self.data_size)
        assert not rest
        return range(self.data_rank * share, (self.data_rank + 1) * share)

    def all_sum(self, values: Tensor) -> Tensor:
        """The sum over the shares of a batch, on the CPU: ranks that see the same clips count once."""
        if self.size == 1:
            return values
        summed = values.detach().cpu().clone()
        dist.all_reduce(summed)
        return summed / self.context_size if self.context_size > 1 else summed

    def all_max(self, values: Tensor) -> Tensor:
        """The largest over ranks of each value, on the CPU."""
        if self.size == 1:
            return values
        found = values.detach().cpu().clone()
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return found

    def global_mean(self, value_B: Tensor) -> Tensor:
        """The mean of a (B,) tensor over the full batch. Its gradient is that of this rank's own samples, times
        `data_size`: averaged over the shares of the batch, it is the gradient of the full mean."""
        own = value_B.mean()
        full = (self.all_sum(own.detach()) / self.data_size).to(own.device)
        return own + (full - own.detach())

    def mean_metrics(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Metrics of the same names on all ranks, averaged."""
        values = self.all_sum(torch.tensor(list(metrics.values()), dtype=torch.float64)) / self.data_size
        return dict(zip(metrics, values.tolist(), strict=True))

    def average_gradients(self, network: nn.Module) -> None:
        """Replace the gradients of a network that every rank has in full by their means over ranks, in place."""
        if self.size == 1:
            return
        gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
        together = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(together)
        together /= self.size
        for gradient, mean in zip(gradients, together.split([each.numel() for each in gradients]), strict=True):
            gradient.copy_(mean.view_as(gradient))

    def any_rank(self, flag: bool) -> bool:
        """Whether it is true on any rank."""
        return bool(self.all_sum(torch.tensor(float(flag))) > 0)

    def barrier(self) -> None:
        """Until all ranks are here."""
        self.any_rank(False)

    def list_numbers(self, number: float) -> list[float]:
        """The number of every rank, in the order of the ranks."""
        if self.size == 1:
            return [number]
        own = torch.tensor([number], dtype=torch.float64)
        found = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(found, own)
        return [each.item() for each in found]

    def gather(self, value: T) -> list[T]:
        """What every rank has for `value`, in the order of the ranks, on all ranks. It travels as JSON."""
        if self.size == 1:
            return [value]
        data = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        lengths = [round(length) for length in self.list_numbers(len(data))]
        found = [torch.empty(max(lengths), dtype=torch.uint8) for _ in lengths]
        dist.all_gather(found, torch.nn.functional.pad(data, (0, max(lengths) - len(data))))
        return [json.loads(each[:length].numpy().tobytes()) for each, length in zip(found, lengths, strict=True)]

    def broadcast(self, value: T, source: int = 0) -> T:
        """What rank `source` has for `value`, on all ranks. It travels as JSON: nothing is unpickled."""
        if self.size == 1:
            return value
        data = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        length = torch.tensor(len(data))
        dist.broadcast(length, source)
        if self.rank != source:
            data = torch.empty(int(length), dtype=torch.uint8)
        dist.broadcast(data, source)
        received: T = json.loads(data.numpy().tobytes())
        return received

    @contextmanager
    def together(self) -> Iterator[None]:
        """A block that all ranks get through, or none: an error on one is raised there, and as UserError on the others.

        Nothing in the block may wait for another rank, which may have left it.
        """
        error: Exception | None = None
        try:
            yield
        except Exception as caught:
            error = caught
        failed = [rank for rank, number in enumerate(self.list_numbers(float(error is not None))) if number]
        if not failed:
            return
        message = self.broadcast(_describe(error), failed[0])
        raise UserError(message) if error is None else error

    def decide(self, make: Callable[[], T]) -> T:
        """What `make` returns on the first rank, which alone calls it, on all ranks; it must be JSON-able.

        An error is raised on all. What depends on files is decided so: network file systems show them to some ranks
        later than to others.
        """
        found: list[T] = []
        with self.together():
            if self.is_main:
                found.append(make())
        return self.broadcast(found)[0]

    def attend(self, work: Callable[[], None]) -> None:
        """Have the first rank do `work`, which asks no other rank for anything, and return on all when it is done.

        The others hear from it all the while, so it may take longer than ranks wait for each other. An error is raised
        on all.
        """
        errors: list[Exception] = []

        def do() -> None:
            try:
                work()
            except Exception as error:
                errors.append(error)

        thread = Thread(target=do, daemon=True)
        if self.is_main:
            thread.start()
        working = True
        while working:
            if self.is_main:
                thread.join(_SECONDS_BETWEEN_SIGNS)
            working = self.any_rank(thread.is_alive())
        with self.together():
            for error in errors:
                raise error

    def collect(self, tensor: Tensor) -> Tensor | None:
        """A tensor that may be sharded, complete, on the CPU of the first rank; None on the others. All must ask."""
        return collect(tensor, self.rank)


def _describe(error: Exception | None) -> str:
    """What the other ranks report of an error."""
    return str(error) if isinstance(error, UserError | OSError) else " ".join(repr(error).split())


SINGLE_PROCESS = Ranks()
"""One process on the CPU."""


def clips_per_rank(compute: ComputeRecipe, batch: int, size: int) -> int:
    """Clips of a batch that each of `size` ranks gets, those that it shares with others included.

    Raises UserError for a number of ranks that the batch, `compute.shard` or `compute.context` do not go with.
    """
    processes = "1 process" if size == 1 else f"{size} processes"
    remedy = "start more with torchrun, or set it to 1" if size == 1 else f"choose a divisor of {size}"
    for key, value in (("shard", compute.shard or size), ("context", compute.context)):
        if size % value:
            raise UserError(f"compute.{key} is {value}, with {processes}: {remedy}")
    shares = size // compute.context
    if batch % shares:
        over = processes if compute.context == 1 else f"{shares} groups of processes"
        raise UserError(f"training.batch is {batch}, over {over}: choose a multiple of {shares}, or fewer processes")
    return batch // shares


@contextmanager
def process_group(compute: ComputeRecipe) -> Iterator[Ranks]:
    """The ranks that `torchrun` started with this process, or this one alone.

    A process group that is there already is joined and, but for its timeout, left as it is. `clips_per_rank` says which
    numbers of ranks go with `compute`. Raises UserError for an environment that does not describe a launch, and for a
    GPU that is asked for and not there.
    """
    launch = read_launch(os.environ, connects=True)
    rank, size = launch.rank, launch.size
    device = pick_device(compute.device, launch)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    shard = compute.shard or size
    assert size % shard == 0 and size % compute.context == 0
    if size == 1 and compute.dtype == "float32":
        yield Ranks(device=device)
        return
    ours, timeout = not dist.is_initialized(), timedelta(minutes=compute.timeout_minutes)
    if ours:
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        if size > 1:
            _join(backend, launch, timeout)
        else:
            dist.init_process_group(backend, timeout=timeout, store=dist.HashStore(), rank=0, world_size=1)
    try:
        if size > 1 and device.type == "cuda":
            _refuse_shared_gpu(_name_gpu(device), launch)
        if shard == size:
            mesh = init_device_mesh(device.type, (size,), mesh_dim_names=("shard",))
        else:
            mesh = init_device_mesh(device.type, (size // shard, shard), mesh_dim_names=("replicate", "shard"))
        context = None
        if compute.context > 1:  # named as diffusers names them
            shape = (size // compute.context, 1, compute.context)
            context = init_device_mesh(device.type, shape, mesh_dim_names=("data", "ring", "ulysses"))
        for group in (group for each in (mesh, context) if each is not None for group in each.get_all_groups()):
            _set_pg_timeout(timeout, group)  # a mesh makes its own groups with PyTorch's default
        yield Ranks(rank, size, device, mesh, context)
    finally:
        if ours:
            dist.destroy_process_group()


def _join(backend: str, launch: Launch, timeout: timedelta) -> None:
    try:
        dist.init_process_group(backend, timeout=timeout, rank=launch.rank, world_size=launch.size)
    except dist.DistError as error:  # no such host, a port in use, nobody there
        place = f"MASTER_ADDR {os.environ['MASTER_ADDR']}, MASTER_PORT {os.environ['MASTER_PORT']}"
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"the processes cannot meet at {place} ({reason}): check both, or start with torchrun"
        ) from error


def _name_gpu(device: torch.device) -> str:
    """A name that no other GPU has, however many of them a process is shown."""
    return f"{platform.node()} {torch.cuda.get_device_properties(device).uuid}"


def _refuse_shared_gpu(name: str, launch: Launch) -> None:
    """Raise UserError, on every rank, if two ranks have the GPU of one name. All ranks must ask."""
    digest = int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "big")
    found = [torch.zeros(1, dtype=torch.int64) for _ in range(launch.size)]
    dist.all_gather(found, torch.tensor([digest]))
    ranks: dict[int, list[int]] = {}
    for rank, each in enumerate(found):
        ranks.setdefault(int(each), []).append(rank)
    shared = next((same for same in ranks.values() if len(same) > 1), None)
    if shared is not None:
        raise UserError(
            f"processes {', '.join(map(str, shared))} were given the same GPU: show each process its own (srun "
            "--gpus-per-task=1), or all of them to every process"
        )


def shard(network: Backbone, ranks: Ranks, dtype: torch.dtype) -> None:
    """With a mesh, shard a network unit by unit and let it compute in `dtype`, in place. It may have no memory yet.

    Parameters stay what they are stored in and gradients are reduced in float32. The family says which units and which
    single weights compute in float32 all the same. Those weights, such as a block's norms, are sharded with the root,
    and first: a unit gathers all its weights in one precision, and a block cannot be the root's later.
    """
    if ranks.mesh is None:
        return
    mesh = ranks.mesh
    precise = MixedPrecisionPolicy(param_dtype=torch.float32, reduce_dtype=torch.float32, cast_forward_inputs=False)
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    units = network.shard_units()
    precise_units = {id(p) for unit in units if unit.float32 for module in unit.modules for p in module.parameters()}
    named = list(network.named_parameters())
    single = {name for name, p in named if network.stays_in_float32(name) and id(p) not in precise_units}

    def weights(*, in_single: bool) -> set[nn.Parameter]:
        return {p for name, p in network.named_parameters() if (name in single) == in_single}

    # The root too lets go of its weights after use: a network that is only run forward, like the average, would keep
    # those it gathered the first time.
    make = partial(fully_shard, mesh=mesh, reshard_after_forward=True)
    if single:
        make(network, mp_policy=precise, ignored_params=weights(in_single=False))
    left_out = weights(in_single=True)
    for unit in units:
        own = precise if unit.float32 else policy
        if len(unit.modules) > 1:  # the last may be a linear layer, whose output is a view, which FSDP warns of
            unit.modules[-1].register_forward_hook(lambda module, inputs, output: output.clone())
        make(list(unit.modules), mp_policy=own, ignored_params=left_out)
    if not single:
        make(network, mp_policy=policy)
    register_fsdp_forward_method(network, "features")
    assert all(isinstance(p, DTensor) for p in network.parameters()), "its units leave weights out"
    if ranks.context_size > 1:  # ranks that share a clip have a part each of its gradient: a sum, not a mean
        for module in network.modules():
            if isinstance(module, FSDPModule):
                module.set_gradient_divide_factor(ranks.data_size)
                module.set_force_sum_reduction_for_comms(True)
    network.compute_dtype = dtype
