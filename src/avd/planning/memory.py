"""Memory of one rank: what stays, and what each moment of a cycle adds to it.

What stays is arithmetic on parameter counts, as `distillation.roles` keeps them: trained weights, their gradients and
AdamW's moments in float32 (moments of 8 bits: a byte each, and a float32 for every 256), averages of the student in
float32, frozen weights in the dtype of the arithmetic; all of it divided over `compute.shard` ranks. A moment of the
cycle adds the activations of its passes, measured by `planning.activations`, the weights that are gathered for it, and
gradients.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from avd.config import AdaptersRecipe, OptimizerRecipe, Recipe
from avd.methods.heads import FeatureHeads
from avd.methods.method import Method
from avd.models.sizes import Sizes
from avd.objectives.source import DataSource
from avd.objectives.term import Heads
from avd.planning.activations import MeasuredPass, PassMemory, PassMeter, build_hollow

_FLOAT32 = 4
_LATENTS_ALIVE = 10
"""Tensors of a clip's latents that a loss has at hand: clean, noise, noisy, velocities, gradient and the like."""


@dataclass(frozen=True)
class Parameters:
    """How many a network has, and how many of an adapter."""

    block: int
    outside: int
    layers: int
    largest: int
    adapter_block: int = 0
    adapter_outside: int = 0

    @property
    def network(self) -> int:
        return self.layers * self.block + self.outside

    @property
    def adapter(self) -> int:
        return self.layers * self.adapter_block + self.adapter_outside


@dataclass(frozen=True)
class Moment:
    """Bytes on top of what stays, at one kind of moment of a cycle."""

    name: str
    activations: float
    gradients: float = 0.0
    gathered: float = 0.0
    """Full weights of the blocks at work, with their gradients before these are sharded."""
    temporaries: float = 0.0
    """Made by the optimizer's step."""

    @property
    def total(self) -> float:
        return self.activations + self.gradients + self.gathered + self.temporaries


@dataclass(frozen=True)
class Resident:
    """Bytes that stay on one rank all through a run."""

    frozen_weights: float
    trained_weights: float
    average: float
    optimizer: float
    batch: float

    @property
    def total(self) -> float:
        return self.frozen_weights + self.trained_weights + self.average + self.optimizer + self.batch


def count_parameters(sizes: Sizes, adapters: AdaptersRecipe | None) -> Parameters:
    """Counted on a network of one block, on the meta device."""
    network = build_hollow(replace(sizes, layers=1), torch.float32, adapters)
    of_blocks = {id(parameter) for block in network.blocks for parameter in block.parameters()}
    counts = {(inside, added): 0 for inside in (True, False) for added in (True, False)}
    for name, parameter in network.named_parameters():
        counts[id(parameter) in of_blocks, "lora_" in name] += parameter.numel()
    trained = [parameter.numel() for parameter in network.parameters() if parameter.requires_grad]
    return Parameters(
        block=counts[True, False],
        outside=counts[False, False],
        layers=sizes.layers,
        largest=max(trained),
        adapter_block=counts[True, True],
        adapter_outside=counts[False, True],
    )


@dataclass(frozen=True)
class SizedNetwork:
    """A network of a run: what its passes take, and how many parameters it has."""

    meter: PassMeter
    parameters: Parameters


class Account:
    """The memory of one of `gpus` ranks. Each has its share of the batch, and of clips that it shares with others.

    `others` holds, by the name of their role, the networks that differ from the student's.
    """

    def __init__(self, recipe: Recipe, student: SizedNetwork, others: Mapping[str, SizedNetwork], gpus: int) -> None:
        self._recipe, self._student, self._others = recipe, student, others
        self._method = Method.of(recipe)
        self._dtype: torch.dtype = getattr(torch, recipe.compute.dtype)
        self._on_gpu = recipe.compute.device != "cpu"
        self._shard = recipe.compute.shard or gpus
        self._sharded = gpus > 1 or recipe.compute.dtype != "float32"
        self._context = recipe.compute.context
        self._clips = recipe.training.batch * self._context // gpus
        self._part = min(recipe.compute.microbatch or self._clips, self._clips)
        self._one_part = self._part == self._clips
        self._adapted = recipe.roles == "adapters"

    def resident(self) -> Resident:
        frozen = self._of("teacher").parameters.network
        if self._adapted and "teacher" in self._others:
            frozen += self._student.parameters.network  # the adapters' base, which is not the teacher here
        if self._method.stages_before:
            frozen += self._student.parameters.network  # the expert of high noise
        learning = {name: self._trained(name) for name in self._optimizers}
        averages = 1 + len(self._method.averaged)
        moments = sum(_bytes_of_moments(self._optimizers[name]) * count for name, count in learning.items())
        return Resident(
            frozen_weights=self._dtype.itemsize * frozen / self._shard,
            trained_weights=_FLOAT32 * sum(learning.values()) / self._shard,
            average=averages * _FLOAT32 * learning["student"] / self._shard,
            optimizer=moments / self._shard,
            batch=self._batch(),
        )

    @property
    def copied(self) -> float:
        """Bytes of host memory: while a checkpoint is written, what is saved; before, the one tensor that is read."""
        resident = self.resident()
        largest = max(each.parameters.largest for each in (self._student, *self._others.values()))
        return max(resident.trained_weights + resident.average + resident.optimizer, _FLOAT32 * largest)

    @property
    def _optimizers(self) -> dict[str, OptimizerRecipe]:
        """The optimizers of all networks that learn, by name."""
        updates = self._method.updates
        return {"student": self._recipe.student.optimizer, **{name: each.optimizer for name, each in updates.items()}}

    def _of(self, network: str) -> SizedNetwork:
        return self._others.get(network, self._student)

    def _trained(self, network: str) -> int:
        """Parameters that are trained of a network that learns."""
        for heads in self._method.heads:
            if heads.name == network:
                return self._heads(heads) * self._shard  # which every rank has in full
        parameters = self._of(network).parameters
        return parameters.adapter if self._adapted else parameters.network

    def _heads(self, which: Heads) -> int:
        """Parameters of heads on the teacher's features."""
        sizes = self._of("teacher").meter.sizes
        with torch.device("meta"):
            heads = FeatureHeads(which, sizes.width, sizes.layers)
        return sum(parameter.numel() for parameter in heads.parameters())

    def _gradients(self, network: str) -> float:
        """Bytes of all of a network's gradients."""
        return _FLOAT32 * self._trained(network) / self._shard

    def moments(self) -> list[Moment]:
        """In the order of a cycle. A forward without gradient takes less than the same one with it, and is left out
        where no graph of the student waits for its gradient meanwhile."""
        learning = self._measure("student", self._part, gradient=True)
        found: list[Moment] = []
        had = 0.0 if self._one_part else self._gradients("student")
        for source in self._method.sources:
            on_data = isinstance(source, DataSource)  # whose parts are judged, and their graphs walked, one by one
            waiting = learning.saved if self._one_part or on_data else 0.0  # the student's graph, until it is walked
            gradients = had if on_data else 0.0  # a rollout is judged before the first gradient
            judges = [each for term in self._method.judging(source) for each in term.term.passes(term.section)]
            plain = {each.network: each.count for each in judges if not each.backward}
            for network, count in plain.items():
                forward = self._measure(network, round(count * self._part), gradient=False)
                gathered = self._gathered(network, learning=False)
                found.append(Moment(f"{_title(network)}'s forward", waiting + forward.peak, gradients, gathered))
            for each in (each for each in judges if each.to_input):
                # at most: gradients of weights, which this measures too, are not computed
                through = self._measure(each.network, round(each.count * self._part), gradient=True)
                gathered, title = self._gathered(each.network, learning=False), _title(each.network)
                found.append(Moment(f"through the {title}", waiting + through.peak, gradients, gathered))
            title = source.name if isinstance(source, DataSource) else "student"
            found.append(self._backward(f"{title}'s backward", "student", had))
            had = self._gradients("student")
        for name in self._method.networks:
            had = 0.0 if self._one_part else self._gradients(name)
            found.append(self._backward(f"{_title(name)}'s backward", name, had))
        found += self.monitoring()
        most = max(self._gradients(name) for name in self._optimizers)
        return [*found, Moment("optimizer's step", 0.0, most, temporaries=self._temporaries())]

    def monitoring(self) -> list[Moment]:
        """While monitors sample: as many clips at once as training computes, with guidance twice as many."""
        if not self._recipe.monitors.every:
            return []
        return [
            Moment(
                f"monitors' {network}",
                self._measure(network, clips, gradient=False).peak,
                gathered=self._gathered(network, learning=False),
            )
            for network, clips in (("teacher", 2 * self._part), ("student", self._part))
        ]

    def _batch(self) -> float:
        """Real latents and prompts, the rollouts' prompts, and what the losses make of latents."""
        sizes, prompts = self._student.meter.sizes, 1 + self._method.rollouts
        prompt = sum(math.prod(shape) for shape in sizes.conditions.values())
        return _FLOAT32 * self._clips * (_LATENTS_ALIVE * math.prod(sizes.latent_CFHW) + prompts * prompt)

    def _backward(self, title: str, network: str, had: float) -> Moment:
        """Begins with all activations and the gradients `had` from earlier passes; ends with all gradients."""
        learning = self._measure(network, self._part, gradient=True)
        gathered = self._gathered(network, learning=True)
        begins = Moment(title, learning.peak, had, gathered)
        ends = Moment(title, learning.peak - learning.saved, self._gradients(network), gathered)
        return max(begins, ends, key=lambda moment: moment.total)

    def _measure(self, network: str, clips: int, *, gradient: bool) -> PassMemory:
        compute, adapters = self._recipe.compute, self._adapted and network != "teacher"
        memory = self._of(network).meter(
            MeasuredPass(
                clips,
                gradient,
                self._dtype,
                compute.checkpointing if gradient else "none",
                self._recipe.adapters if adapters else None,
                compute.attention,
                self._on_gpu,
            )
        )
        return replace(memory, saved=memory.saved / self._context, peak=memory.peak / self._context)

    def _gathered(self, network: str, *, learning: bool) -> float:
        """FSDP's: the block at work and the next with the buffer it arrives in, and what stands outside the blocks.

        On the way back also the block's gradients, as computed and, in float32, as they are summed over ranks.
        """
        if not self._sharded:
            return 0.0
        p = self._of(network).parameters
        adapters = 2 + len(self._method.auxiliaries)  # the student's, its average's, and those of auxiliaries
        block, outside = p.block + adapters * p.adapter_block, p.outside + adapters * p.adapter_outside
        weights = self._dtype.itemsize * (3 * block + outside)
        trained = p.adapter_block if self._adapted else p.block
        return weights + (trained * (self._dtype.itemsize + _FLOAT32) if learning else 0)

    def _temporaries(self) -> float:
        """AdamW's: none on a GPU, where it is fused; with 8 bits and on a CPU those of one tensor after the other."""
        fused = self._on_gpu and all(optimizer.bits == 32 for optimizer in self._optimizers.values())
        largest = max(self._of(name).parameters.largest for name in self._optimizers)
        return 0.0 if fused else _FLOAT32 * 2 * largest / self._shard


def _title(network: str) -> str:
    return network.replace("_", " ")


def _bytes_of_moments(recipe: OptimizerRecipe) -> float:
    """A parameter's two moments."""
    return 2 * (_FLOAT32 if recipe.bits == 32 else 1 + _FLOAT32 / 256)
