"""Teacher, student and the auxiliaries of a method: roles over weights, and the student's moving average.

`full`: a model per role; student and auxiliaries start as copies of the teacher. `adapters`: one frozen base; the
teacher is the base itself, the others are LoRA adapters on it that start as the base. Nobody who uses a role can tell.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from avd.config import ComputeRecipe, OptimizerRecipe, Recipe
from avd.engine.ema import EMA
from avd.engine.optimizers import make_optimizer, set_learning_rate
from avd.engine.packing import pack_optimizer, pack_weights, unpack_optimizer, unpack_weights
from avd.engine.randomness import derive_seed
from avd.engine.ranks import SINGLE_PROCESS, Ranks, shard
from avd.methods.method import Method
from avd.models.adapters import AdapterVelocity, adapter_weights, add_adapters, merged_weights
from avd.models.backbone import Backbone
from avd.models.family import TextToVideo
from avd.types import Velocity


class Network(Velocity, Protocol):
    """A role's network: its velocity, and the weights that are its own."""

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]: ...

    def parameters(self) -> Iterator[nn.Parameter]: ...


class Trained:
    """A role that learns: its network, its optimizer, and how many steps were skipped for non-finite gradients."""

    def __init__(self, name: str, network: Network, recipe: OptimizerRecipe) -> None:
        self.name, self.network, self.recipe = name, network, recipe
        self.optimizer = make_optimizer(list(network.parameters()), recipe)
        self.steps = self.skipped = 0

    def step(self) -> float:
        """Clip the gathered gradient, take one optimizer step unless the gradient is not finite, clear it.

        Returns the norm before clipping, over all ranks.
        """
        warmup = self.recipe.warmup
        set_learning_rate(self.optimizer, self.recipe.learning_rate * min(1.0, (self.steps + 1) / max(warmup, 1)))
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.recipe.clip).item()
        if norm < float("inf"):  # false for nan too
            self.optimizer.step()
            self.steps += 1
        else:
            self.skipped += 1
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def tensors(self) -> dict[str, Tensor]:
        return pack_weights(self.name, self.network) | pack_optimizer(f"{self.name}_optimizer", self.optimizer)

    def state(self) -> dict[str, int]:
        return {"steps": self.steps, "skipped": self.skipped}

    def load(self, tensors: Mapping[str, Tensor], state: Mapping[str, int]) -> None:
        unpack_weights(self.name, self.network, tensors)
        unpack_optimizer(f"{self.name}_optimizer", self.optimizer, tensors)
        self.steps, self.skipped = state["steps"], state["skipped"]


class Follower:
    """An auxiliary that follows the student: a moving average of its weights."""

    def __init__(self, name: str, average: EMA[Network]) -> None:
        self.name, self._average = name, average

    @property
    def network(self) -> Network:
        return self._average.module

    def follow(self, student: Trained) -> None:
        """Call it after each step that the student takes."""
        self._average.update(student.network, student.steps - 1)

    def tensors(self) -> dict[str, Tensor]:
        return pack_weights(self.name, self.network)

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        unpack_weights(self.name, self.network, tensors)


class Roles:
    """The networks of a run, as its recipe says, on the device and sharded over the ranks.

    `teacher` is frozen; `student` and the auxiliaries in `learned` learn; `average`, of the student's weights, is what
    is exported, and the auxiliaries in `followers` follow the student likewise. Only what `method` needs is made.
    """

    def __init__(self, model: TextToVideo, recipe: Recipe, method: Method, ranks: Ranks = SINGLE_PROCESS) -> None:
        self._ranks = ranks
        make = _adapters if recipe.roles == "adapters" else _full
        self.teacher, networks, averages = make(model, recipe, method, ranks)
        self.student = Trained("student", networks["student"], recipe.student.optimizer)
        self.average = Follower("average", averages["average"])
        self.learned = {name: Trained(name, networks[name], each.optimizer) for name, each in method.updates.items()}
        self.followers = {each.name: Follower(each.name, averages[each.name]) for each in method.averaged}

    def auxiliary(self, name: str) -> Network:
        """The network of an auxiliary."""
        role: Trained | Follower = self.learned[name] if name in self.learned else self.followers[name]
        return role.network

    def step_student(self) -> float:
        """Let the student take its step, and whoever follows it follow. Returns the gradient's norm before clipping."""
        steps = self.student.steps
        norm = self.student.step()
        if self.student.steps > steps:
            for follower in (self.average, *self.followers.values()):
                follower.follow(self.student)
        return norm

    def tensors(self) -> dict[str, Tensor]:
        roles: list[Trained | Follower] = [self.student, *self.learned.values(), self.average, *self.followers.values()]
        return {name: tensor for role in roles for name, tensor in role.tensors().items()}

    def state(self) -> dict[str, Any]:
        return {role.name: role.state() for role in (self.student, *self.learned.values())}

    def load(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        for role in (self.student, *self.learned.values()):
            role.load(tensors, state[role.name])
        for follower in (self.average, *self.followers.values()):
            follower.load(tensors)

    def export_average(self) -> dict[str, Tensor]:
        """The averaged student as the full state dict of a plain transformer, on the CPU. All ranks must ask."""
        average, gather = self.average.network, self._ranks.gather
        if isinstance(average, AdapterVelocity):
            return merged_weights(average.base.transformer, "average", gather)
        return {name.removeprefix("transformer."): gather(p) for name, p in average.named_parameters()}

    def export_adapter(self) -> dict[str, Tensor]:
        """The averaged student's adapter by itself, likewise. Only where roles are adapters."""
        average = self.average.network
        assert isinstance(average, AdapterVelocity)
        return adapter_weights(average.base.transformer, "average", self._ranks.gather)


_Networks = tuple[Network, dict[str, Network], dict[str, EMA[Network]]]
"""The teacher; the networks that learn, by name; the moving averages of the student, by name."""


def _decays(recipe: Recipe, method: Method) -> dict[str, float]:
    return {"average": recipe.student.ema, **{each.name: each.decay for each in method.averaged}}


def _full(model: TextToVideo, recipe: Recipe, method: Method, ranks: Ranks) -> _Networks:
    teacher = model.velocity().eval().requires_grad_(False)
    names = ("student", *method.updates)
    learning = {name: model.fresh_velocity().train().requires_grad_(True) for name in names}
    networks: dict[str, Network] = dict(learning)
    averages = {name: EMA(networks["student"], decay) for name, decay in _decays(recipe, method).items()}
    for network in (teacher, *learning.values(), *(average.module for average in averages.values())):
        assert isinstance(network, Backbone)
        _set_up(network, recipe.compute, ranks, frozen=network is teacher)
    return teacher, networks, averages


def _adapters(model: TextToVideo, recipe: Recipe, method: Method, ranks: Ranks) -> _Networks:
    base, lora, decays = model.velocity().train(), recipe.adapters, _decays(recipe, method)
    learning, targets = ("student", *method.updates), lora.targets or model.sizes.adapter_targets
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(recipe.seed, "adapters"))
        add_adapters(base.transformer, (*learning, *decays), rank=lora.rank, alpha=lora.alpha, targets=targets)
    _set_up(base, recipe.compute, ranks, frozen=True)
    networks: dict[str, Network] = {name: AdapterVelocity(base, name) for name in learning}
    averages: dict[str, EMA[Network]] = {
        name: EMA(networks["student"], decay, into=AdapterVelocity(base, name)) for name, decay in decays.items()
    }
    return AdapterVelocity(base, None), networks, averages


def _set_up(network: Backbone, compute: ComputeRecipe, ranks: Ranks, *, frozen: bool) -> None:
    """Set `network` up as `compute` says, in place.

    `frozen`: weights that no optimizer reads need no more precision than they get.
    """
    dtype = getattr(torch, compute.dtype)
    network.use_attention(compute.attention)
    if ranks.context is not None:
        network.share_sequences(ranks.context)
    network.recompute(compute.checkpointing)
    if frozen:
        network.store_frozen(dtype)
    if compute.compile:
        network.compile_blocks()
    shard(network, ranks, dtype)
