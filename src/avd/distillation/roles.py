"""Teacher, student and the auxiliaries of a method: roles over weights, and the student's moving average.

`full`: a model per role. `adapters`: one frozen base, of which all but the teacher are LoRA adapters; the teacher is
the base itself, or another model. Nobody who uses a role can tell. `distillation.starts` says what each begins as: the
teacher, unless a recipe says otherwise.

Networks are built without memory, sharded, and then filled, each rank reading its own shards, so that no rank ever
holds a complete one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from avd.config import ComputeRecipe, OptimizerRecipe, Recipe
from avd.distillation.starts import Start, Starts
from avd.engine.ema import EMA
from avd.engine.optimizers import make_optimizer, set_learning_rate
from avd.engine.packing import HasParameters, pack_optimizer, pack_weights, unpack_optimizer, unpack_weights
from avd.engine.randomness import derive_seed, generator_for
from avd.engine.ranks import SINGLE_PROCESS, Ranks, shard
from avd.engine.sharding import fill, fill_like
from avd.flow import TIMESTEPS
from avd.methods.heads import FeatureHeads
from avd.methods.method import Method
from avd.models.adapters import (
    AdaptedWeights,
    AdapterVelocity,
    adapted_layers,
    adapter_stream,
    add_adapters,
    merged_stream,
)
from avd.models.backbone import Backbone
from avd.models.experts import Experts
from avd.models.lora import LoraMatrices
from avd.models.streams import TensorStream
from avd.objectives.term import Heads
from avd.types import Conditions, Velocity


class Network(Velocity, Protocol):
    """A role's network: its velocity, and the weights that are its own."""

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]: ...

    def parameters(self) -> Iterator[nn.Parameter]: ...


class FrozenTeacher(Network, Protocol):
    """A network whose blocks' features are asked for too; see `models.backbone.Backbone.features`."""

    def features(
        self, x_BCFHW: Tensor, sigma_B: Tensor, conditions: Conditions, blocks: Sequence[int], **strides: int
    ) -> tuple[Tensor, ...]: ...


class _Learnt(HasParameters, Protocol):
    def parameters(self) -> Iterator[nn.Parameter]: ...


LearntT = TypeVar("LearntT", bound=_Learnt)


class Trained(Generic[LearntT]):
    """A role that learns: its network, its optimizer, and how many steps were skipped for non-finite gradients.

    `gather` is called before each step, for gradients that sharding has not gathered from the ranks.
    """

    def __init__(
        self, name: str, network: LearntT, recipe: OptimizerRecipe, gather: Callable[[], None] = lambda: None
    ) -> None:
        self.name, self.network, self.recipe, self._gather = name, network, recipe, gather
        self.optimizer = make_optimizer(list(network.parameters()), recipe)
        self.steps = self.skipped = 0

    def step(self) -> float:
        """Clip the gathered gradient, take one optimizer step unless the gradient is not finite, clear it.

        Returns the norm before clipping, over all ranks.
        """
        self._gather()
        warmup = self.recipe.warmup
        set_learning_rate(self.optimizer, self.recipe.learning_rate * min(1.0, (self.steps + 1) / max(warmup, 1)))
        largest = math.inf if self.recipe.clip is None else self.recipe.clip
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), largest).item()
        if norm < math.inf:  # false for nan too
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

    def follow(self, student: Trained[Network]) -> None:
        """Call it after each step that the student takes."""
        self._average.update(student.network, student.steps - 1)

    def tensors(self) -> dict[str, Tensor]:
        return pack_weights(self.name, self.network)

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        unpack_weights(self.name, self.network, tensors)


class Roles:
    """The networks of a run, as its recipe says, on the device and sharded over the ranks.

    `teacher` is frozen; `student` and the auxiliaries in `learned` learn, as do the `heads` on the teacher's features,
    which every rank has in full; `average`, of the student's weights, is what is exported, and the auxiliaries in
    `followers` follow the student likewise. `high_expert` is frozen, and there where it takes the first stages of the
    student. Only what `method` needs is made.
    """

    def __init__(self, starts: Starts, recipe: Recipe, method: Method, ranks: Ranks = SINGLE_PROCESS) -> None:
        self.starts, self._ranks = starts, ranks
        make = _adapters if recipe.roles == "adapters" else _full
        self.teacher, self.high_expert, networks, averages = make(starts, recipe, method, ranks)
        self._boundary = _boundary(recipe)
        self.student = Trained("student", networks["student"], recipe.student.optimizer)
        self.average = Follower("average", averages["average"])
        self.learned = {name: Trained(name, networks[name], each.optimizer) for name, each in method.networks.items()}
        self.heads = {
            each.name: _heads(each, starts, recipe.seed, method.updates[each.name].optimizer, ranks)
            for each in method.heads
        }
        self.followers = {each.name: Follower(each.name, averages[each.name]) for each in method.averaged}
        self._own_shares = {name: each.ida for name, each in method.networks.items() if each.ida is not None}

    def path_of(self, network: Velocity) -> Velocity:
        """What a rollout runs: the student, or its average, after the expert of high noise if there is one."""
        return network if self.high_expert is None else Experts(self.high_expert, network, self._boundary)

    def auxiliary(self, name: str) -> Network:
        """The network of an auxiliary."""
        role: Trained[Network] | Follower = self.learned[name] if name in self.learned else self.followers[name]
        return role.network

    @property
    def trained(self) -> dict[str, Trained[Any]]:
        """All that learn, by name."""
        return {"student": self.student, **self.learned, **self.heads}

    def step_student(self, active: Collection[str]) -> float:
        """Let the student take its step, and whoever follows it follow; of those that learn, the `active` ones take
        over their share of it. Returns the gradient's norm before clipping."""
        steps = self.student.steps
        norm = self.student.step()
        if self.student.steps > steps:
            for follower in (self.average, *self.followers.values()):
                follower.follow(self.student)
            for name in self._own_shares.keys() & active:
                _align(self.learned[name].network, self.student.network, self._own_shares[name])
        return norm

    def tensors(self) -> dict[str, Tensor]:
        roles: list[Trained[Any] | Follower] = [*self.trained.values(), self.average, *self.followers.values()]
        return {name: tensor for role in roles for name, tensor in role.tensors().items()}

    def state(self) -> dict[str, Any]:
        return {name: role.state() for name, role in self.trained.items()}

    def load(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        for name, role in self.trained.items():
            role.load(tensors, state[name])
        for follower in (self.average, *self.followers.values()):
            follower.load(tensors)

    def average_stream(self) -> TensorStream:
        """The averaged student's weights, those of a plain transformer. All ranks must walk it."""
        average, collect = self.average.network, self._ranks.collect
        if isinstance(average, AdapterVelocity):
            base, main = self.starts.student.base, self._ranks.is_main
            return merged_stream(average.base.transformer, "average", base, collect, main=main)
        parameters = {_plain_name(name): p for name, p in average.named_parameters()}
        shapes = {name: tuple(p.shape) for name, p in parameters.items()}
        return TensorStream(shapes, lambda name: collect(parameters[name]))

    def adapter_stream(self) -> TensorStream:
        """The averaged student's adapter by itself, likewise. Only where roles are adapters."""
        average = self.average.network
        assert isinstance(average, AdapterVelocity)
        return adapter_stream(average.base.transformer, "average", self._ranks.collect)


@torch.no_grad()
def _align(network: Network, student: Network, own_share: float) -> None:
    """Give `network`, in place, `own_share` of its own weights and the rest of the student's; of adapters, of their
    matrices."""
    own: list[Tensor] = list(network.parameters())
    other: list[Tensor] = list(student.parameters())
    torch._foreach_lerp_(own, other, 1.0 - own_share)


_Networks = tuple[FrozenTeacher, Network | None, dict[str, Network], dict[str, EMA[Network]]]
"""The teacher; the expert of high noise; the networks that learn, by name; the moving averages of the student, by
name."""


def _boundary(recipe: Recipe) -> float:
    """A noise level between the stages of the two experts; 1 for one network."""
    timesteps, first = recipe.rollout.timesteps, recipe.trained_stages.start
    return (timesteps[first - 1] + timesteps[first]) / 2 / TIMESTEPS if first else 1.0


def _decays(recipe: Recipe, method: Method) -> dict[str, float]:
    return {"average": recipe.student.ema, **{each.name: each.decay for each in method.averaged}}


def _heads(which: Heads, starts: Starts, seed: int, optimizer: OptimizerRecipe, ranks: Ranks) -> Trained[FeatureHeads]:
    """Drawn alike on all ranks."""
    heads = FeatureHeads(which, starts.teacher.model.sizes.width, starts.teacher.model.sizes.layers)
    heads.draw(generator_for(seed, which.name))
    heads.to(ranks.device)
    return Trained(which.name, heads, optimizer, partial(ranks.average_gradients, heads))


def _full(starts: Starts, recipe: Recipe, method: Method, ranks: Ranks) -> _Networks:
    filled: list[tuple[Start, Backbone]] = []

    def make(start: Start, *, frozen: bool = False) -> Backbone:
        network = start.model.hollow_velocity().train(not frozen).requires_grad_(not frozen)
        _set_up(network, recipe.compute, ranks, frozen=frozen)
        alike = next((other for known, other in filled if known is start), None)
        if alike is None:
            fill(network, start.weights, ranks.device, _plain_name)
        else:
            fill_like(network, alike, ranks.device)
        if not frozen:  # which may be rounded
            filled.append((start, network))
        return network

    learning = {name: make(starts.of(name)) for name in ("student", *method.networks)}
    averages: dict[str, EMA[Network]] = {
        name: EMA[Network](learning["student"], decay, into=make(starts.student))
        for name, decay in _decays(recipe, method).items()
    }
    high = None if starts.high is None else make(starts.high, frozen=True)
    return make(starts.teacher, frozen=True), high, dict(learning), averages


def _adapters(starts: Starts, recipe: Recipe, method: Method, ranks: Ranks) -> _Networks:
    lora, decays, student = recipe.adapters, _decays(recipe, method), starts.student
    base, learning = student.model.hollow_velocity().train(), ("student", *method.networks)
    names = (*learning, *decays)
    with torch.device("meta"):
        targets = lora.targets or student.model.sizes.adapter_targets
        add_adapters(base.transformer, names, rank=lora.rank, alpha=lora.alpha, targets=targets)
    _set_up(base, recipe.compute, ranks, frozen=True)
    layers = adapted_layers(base.transformer)

    def seed(layer: str) -> int:
        return derive_seed(recipe.seed, "adapters", layer)

    fresh = LoraMatrices.fresh(student.base, layers, lora.rank, seed)
    begin = {name: (starts.of(name) if name in learning else student).lora or fresh for name in names}
    fill(base, AdaptedWeights(student.base, begin, lora.alpha / lora.rank), ranks.device, _plain_name)
    networks: dict[str, Network] = {name: AdapterVelocity(base, name) for name in learning}
    averages: dict[str, EMA[Network]] = {
        name: EMA(networks["student"], decay, into=AdapterVelocity(base, name)) for name, decay in decays.items()
    }

    def frozen(start: Start) -> FrozenTeacher:
        if start.base is student.base and start.lora is None:
            return AdapterVelocity(base, None)
        network = start.model.hollow_velocity().eval().requires_grad_(False)
        _set_up(network, recipe.compute, ranks, frozen=True)
        fill(network, start.weights, ranks.device, _plain_name)
        return network

    high = None if starts.high is None else frozen(starts.high)
    return frozen(starts.teacher), high, networks, averages


def _plain_name(name: str) -> str:
    """A parameter's name in its transformer."""
    return name.removeprefix("transformer.")


def _set_up(network: Backbone, compute: ComputeRecipe, ranks: Ranks, *, frozen: bool) -> None:
    """Set `network`, which has no memory yet, up as `compute` says, in place.

    `frozen`: weights that no optimizer reads need no more precision than they get.
    """
    dtype = getattr(torch, compute.dtype)
    network.use_attention(compute.attention)
    if ranks.context is not None:
        network.share_sequences(ranks.context)
    if compute.compile:
        network.compile_blocks()
    network.recompute(compute.checkpointing)
    if frozen:
        network.store_frozen(dtype)
    shard(network, ranks, dtype)
