"""Teacher, student and fake score: roles over weights, and the student's moving average.

`full`: three models; student and fake score begin as copies of the teacher. `adapters`: one frozen base; the teacher is
the base itself, the others are LoRA adapters on it that begin as the base. Nobody who uses a role can tell.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from avd.config import ComputeRecipe, OptimizerRecipe, Recipe
from avd.engine.ema import EMA
from avd.engine.optimizers import make_optimizer, set_learning_rate
from avd.engine.packing import pack_optimizer, pack_weights, unpack_optimizer, unpack_weights
from avd.engine.randomness import derive_seed
from avd.engine.ranks import SINGLE_PROCESS, Ranks, shard
from avd.models.adapters import AdapterVelocity, adapter_weights, add_adapters, merged_weights
from avd.models.backbone import Backbone
from avd.models.family import TextToVideo
from avd.types import Velocity

_ADAPTERS = ("student", "fake_score", "average")


class Network(Velocity, Protocol):
    """A role's network: its velocity, and the weights that are its own."""

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]: ...

    def parameters(self) -> Iterator[nn.Parameter]: ...


class Trained:
    """A role that learns: its network, its optimizer, and how many steps were skipped for gradients not finite."""

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


class Roles:
    """The networks of a run, as its recipe says, on the device and sharded over the ranks.

    `teacher` is frozen; `student` and `fake_score` learn; `average`, of the student's weights, is what is exported.
    """

    def __init__(self, model: TextToVideo, recipe: Recipe, ranks: Ranks = SINGLE_PROCESS) -> None:
        self._ranks = ranks
        make = _adapters if recipe.roles == "adapters" else _full
        self.teacher, student, fake_score, self.average = make(model, recipe, ranks)
        self.student = Trained("student", student, recipe.student.optimizer)
        self.fake_score = Trained("fake_score", fake_score, recipe.fake_score.optimizer)

    def export_average(self) -> dict[str, Tensor]:
        """The averaged student as the state dict of a plain transformer, whole, on the CPU. All ranks must ask."""
        average, whole = self.average.module, self._ranks.gather
        if isinstance(average, AdapterVelocity):
            return merged_weights(average.base.transformer, "average", whole)
        return {name.removeprefix("transformer."): whole(p) for name, p in average.named_parameters()}

    def export_adapter(self) -> dict[str, Tensor]:
        """The averaged student's adapter by itself, likewise. Only where roles are adapters."""
        average = self.average.module
        assert isinstance(average, AdapterVelocity)
        return adapter_weights(average.base.transformer, "average", self._ranks.gather)


_Made = tuple[Network, Network, Network, EMA[Network]]


def _full(model: TextToVideo, recipe: Recipe, ranks: Ranks) -> _Made:
    teacher = model.velocity().eval().requires_grad_(False)
    student, fake_score = (model.fresh_velocity().train().requires_grad_(True) for _ in range(2))
    average: EMA[Network] = EMA(student, recipe.student.ema)
    for network in (teacher, student, fake_score, average.module):
        assert isinstance(network, Backbone)
        _set_up(network, recipe.compute, ranks, frozen=network is teacher)
    return teacher, student, fake_score, average


def _adapters(model: TextToVideo, recipe: Recipe, ranks: Ranks) -> _Made:
    base, lora = model.velocity().train(), recipe.adapters
    targets = lora.targets or model.sizes.adapter_targets
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(recipe.seed, "adapters"))
        add_adapters(base.transformer, _ADAPTERS, rank=lora.rank, alpha=lora.alpha, targets=targets)
    _set_up(base, recipe.compute, ranks, frozen=True)
    student, fake_score, average = (AdapterVelocity(base, name) for name in _ADAPTERS)
    averaged: EMA[Network] = EMA(student, recipe.student.ema, into=average)
    return AdapterVelocity(base, None), student, fake_score, averaged


def _set_up(network: Backbone, compute: ComputeRecipe, ranks: Ranks, *, frozen: bool) -> None:
    """As `compute` says, in place. `frozen`: weights that no optimizer reads need no more precision than they get."""
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
