"""How much is in memory while a run starts and while its student is written: shards, and one tensor more."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from avd.config import load_recipe
from avd.distillation.roles import Roles
from avd.distillation.starts import Starts
from avd.engine.ranks import Ranks
from avd.methods.method import Method
from avd.models.family import load_model
from helpers.tiny import tiny_model

ADAPTERS = ("roles=adapters", "adapters.rank=4")


class Allocated(TorchDispatchMode):
    """Counts the bytes of plain tensors from when operations make them until they are freed."""

    def __init__(self, given: Iterable[Tensor] = ()) -> None:
        """Those that are there already, `given`, are not counted."""
        super().__init__()
        self.now = self.peak = 0
        self._known = {tensor.untyped_storage()._cdata for tensor in given}

    def __torch_dispatch__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and not isinstance(leaf, DTensor) and not leaf.is_meta:
                storage = leaf.untyped_storage()
                if storage._cdata not in self._known:
                    self._known.add(storage._cdata)
                    self.now += storage.nbytes()
                    self.peak = max(self.peak, self.now)
                    weakref.finalize(storage, self._forget, storage._cdata, storage.nbytes())
        return result

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


@contextmanager
def one_of(size: int, rank: int = 0) -> Iterator[Ranks]:
    """One rank of `size`, of which the others are not there: what they would send arrives as it may."""
    dist.init_process_group("fake", rank=rank, world_size=size, store=FakeStore())
    try:
        yield Ranks(rank, size, mesh=init_device_mesh("cpu", (size,), mesh_dim_names=("shard",)))
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny"
    tiny_model().save(path)
    return path


def make_roles(folder: Path, ranks: Ranks, *overrides: str) -> Roles:
    recipe = load_recipe("avd", [f"model={folder}", *overrides])
    method = Method.of(recipe)
    return Roles(Starts.alike(load_model(str(folder)), method), recipe, method, ranks)


def tensors_of(roles: Roles) -> list[Tensor]:
    """Every network's own part of every tensor, each once."""
    networks = [roles.student.network, roles.average.network, roles.auxiliary("fake_score")]
    teacher = getattr(roles.teacher, "base", roles.teacher)
    found = {id(p): p for network in (*networks, teacher) for p in network.parameters()}
    return [p.to_local() if isinstance(p, DTensor) else p for p in found.values()]


def largest(folder: Path) -> int:
    return max(4 * torch.Size(shape).numel() for shape in load_model(str(folder)).weights().shapes.values())


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("mode", [(), ADAPTERS], ids=["full", "adapters"])
def test_a_rank_that_starts_holds_its_shards_and_one_tensor(mode: tuple[str, ...], size: int, folder: Path) -> None:
    complete = sum(4 * torch.Size(shape).numel() for shape in load_model(str(folder)).weights().shapes.values())
    with one_of(size) as ranks, Allocated() as allocated:
        roles = make_roles(folder, ranks, *mode)
        own = sum(tensor.nbytes for tensor in tensors_of(roles))
        assert own < (4 if mode == () else 2) * complete / size * 1.3  # of four networks, or of one with adapters
        assert own <= allocated.peak <= 1.3 * own + largest(folder)


def test_a_larger_teacher_is_held_in_shards_too(folder: Path) -> None:
    with one_of(4) as ranks:
        recipe = load_recipe("avd", [f"model={folder}", f"teacher={folder}", *ADAPTERS])
        method, model, teacher = Method.of(recipe), load_model(str(folder)), load_model(str(folder))
        alike = Starts.alike(model, method)
        starts = Starts(Starts.alike(teacher, method).teacher, alike.student, alike.auxiliaries)
        roles = Roles(starts, recipe, method, ranks)
        held = sum(p.to_local().numel() for p in roles.teacher.parameters())  # type: ignore[attr-defined]
        assert held < 0.3 * sum(torch.Size(shape).numel() for shape in teacher.weights().shapes.values())


@pytest.mark.parametrize("mode", [(), ADAPTERS], ids=["full", "adapters"])
def test_export_holds_one_tensor_on_the_first_rank_and_a_shard_elsewhere(mode: tuple[str, ...], folder: Path) -> None:
    peaks = {}
    for rank in (0, 1):
        with one_of(4, rank) as ranks:
            roles = make_roles(folder, ranks, *mode)
            with Allocated(tensors_of(roles)) as allocated:
                names = []
                for name, tensor in roles.average_stream():
                    names.append(name)
                    del tensor
        peaks[rank] = allocated.peak
        assert sorted(names) == (sorted(load_model(str(folder)).weights().shapes) if rank == 0 else [])
    # With adapters: the stored tensor, the product of the two matrices, their sum.
    assert peaks[0] <= (1.3 if mode == () else 3.5) * largest(folder)
    assert peaks[1] <= 0.3 * largest(folder)
