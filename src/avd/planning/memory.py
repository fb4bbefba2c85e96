"""Memory of one rank: what stays, and what each moment of a cycle adds to it.

What stays is arithmetic on parameter counts, as `distillation.roles` keeps them: trained weights, their gradients and
AdamW's moments in float32 (moments of 8 bits: a byte each, and a float32 for every 256), averages of the student in
float32, frozen weights in the dtype of the arithmetic; all of it divided over `compute.shard` ranks. A moment of the
cycle adds the activations of its passes, measured by `planning.activations`, the weights that are gathered for it, and
gradients.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from avd.config import AdaptersRecipe, OptimizerRecipe, Recipe
from avd.methods.method import Method
from avd.models.sizes import Sizes
from avd.objectives.source import DataSource
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


class Account:
    """The memory of one of `gpus` ranks. Each has its share of the batch, and of clips that it shares with others."""

    def __init__(self, recipe: Recipe, meter: PassMeter, parameters: Parameters, gpus: int) -> None:
        self._recipe, self._meter, self._parameters = recipe, meter, parameters
        self._method = Method.of(recipe)
        self._dtype: torch.dtype = getattr(torch, recipe.compute.dtype)
        self._on_gpu = recipe.compute.device != "cpu"
        self._shard = recipe.compute.shard or gpus
        self._sharded = gpus > 1 or recipe.compute.dtype != "float32"
        self._context = recipe.compute.context
        self._clips = recipe.training.batch * self._context // gpus
        self._part = min(recipe.compute.microbatch or self._clips, self._clips)
        self._one_part = self._part == self._clips
        self._trained = parameters.adapter if recipe.roles == "adapters" else parameters.network
        self._gradients = _FLOAT32 * self._trained / self._shard

    def resident(self) -> Resident:
        optimizers = self._optimizers
        averages = 1 + len(self._method.averaged)
        return Resident(
            frozen_weights=self._dtype.itemsize * self._parameters.network / self._shard,
            trained_weights=len(optimizers) * _FLOAT32 * self._trained / self._shard,
            average=averages * _FLOAT32 * self._trained / self._shard,
            optimizer=sum(_bytes_of_moments(optimizer) for optimizer in optimizers) * self._trained / self._shard,
            batch=self._batch(),
        )

    @property
    def _optimizers(self) -> list[OptimizerRecipe]:
        """The optimizers of all networks that learn."""
        return [self._recipe.student.optimizer, *(each.optimizer for each in self._method.updates.values())]

    def moments(self) -> list[Moment]:
        """In the order of a cycle. A forward without gradient takes less than the same one with it, and is left out
        where no graph of the student waits for its gradient meanwhile."""
        learning = self._measure(self._part, gradient=True)
        found: list[Moment] = []
        had = 0.0 if self._one_part else self._gradients
        for source in self._method.sources:
            on_data = isinstance(source, DataSource)  # whose parts are judged, and their graphs walked, one by one
            waiting = learning.saved if self._one_part or on_data else 0.0  # the student's graph, until it is walked
            gradients = had if on_data else 0.0  # a rollout is judged before the first gradient
            judges = [each for term in self._method.judging(source) for each in term.term.passes(term.section)]
            for network, count in {each.network: each.count for each in judges if not each.learns}.items():
                forward = self._measure(round(count * self._part), gradient=False, adapted=network != "teacher")
                gathered = self._gathered(learning=False)
                found.append(Moment(f"{_title(network)}'s forward", waiting + forward.peak, gradients, gathered))
            title = source.name if isinstance(source, DataSource) else "student"
            found.append(self._backward(f"{title}'s backward", learning, had))
            had = self._gradients
        had = 0.0 if self._one_part else self._gradients
        found += [self._backward(f"{_title(each.name)}'s backward", learning, had) for each in self._method.learned]
        found += self.monitoring()
        return [*found, Moment("optimizer's step", 0.0, self._gradients, temporaries=self._temporaries())]

    def monitoring(self) -> list[Moment]:
        """While monitors sample: as many clips at once as training computes, with guidance twice as many."""
        if not self._recipe.monitors.every:
            return []
        gathered = self._gathered(learning=False)
        teacher = self._measure(2 * self._part, gradient=False, adapted=False)
        student = self._measure(self._part, gradient=False)
        return [
            Moment("monitors' teacher", teacher.peak, gathered=gathered),
            Moment("monitors' student", student.peak, gathered=gathered),
        ]

    def _batch(self) -> float:
        """Real latents and prompts, the rollouts' prompts, and what the losses make of latents."""
        sizes, prompts = self._meter.sizes, 1 + self._method.rollouts
        prompt = sum(math.prod(shape) for shape in sizes.conditions.values())
        return _FLOAT32 * self._clips * (_LATENTS_ALIVE * math.prod(sizes.latent_CFHW) + prompts * prompt)

    def _backward(self, name: str, learning: PassMemory, had: float) -> Moment:
        """Begins with all activations and the gradients `had` from earlier passes; ends with all gradients."""
        gathered = self._gathered(learning=True)
        begins = Moment(name, learning.peak, had, gathered)
        ends = Moment(name, learning.peak - learning.saved, self._gradients, gathered)
        return max(begins, ends, key=lambda moment: moment.total)

    def _measure(self, clips: int, *, gradient: bool, adapted: bool = True) -> PassMemory:
        compute, adapters = self._recipe.compute, self._recipe.roles == "adapters" and adapted
        memory = self._meter(
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

    def _gathered(self, *, learning: bool) -> float:
        """FSDP's: the block at work and the next with the buffer it arrives in, and what stands outside the blocks.

        On the way back also the block's gradients, as computed and, in float32, as they are summed over ranks.
        """
        if not self._sharded:
            return 0.0
        p = self._parameters
        adapters = 2 + len(self._method.auxiliaries)  # the student's, its average's, and those of auxiliaries
        block, outside = p.block + adapters * p.adapter_block, p.outside + adapters * p.adapter_outside
        weights = self._dtype.itemsize * (3 * block + outside)
        trained = p.adapter_block if self._recipe.roles == "adapters" else p.block
        return weights + (trained * (self._dtype.itemsize + _FLOAT32) if learning else 0)

    def _temporaries(self) -> float:
        """AdamW's: none on a GPU, where it is fused; with 8 bits and on a CPU those of one tensor after the other."""
        fused = self._on_gpu and all(optimizer.bits == 32 for optimizer in self._optimizers)
        return 0.0 if fused else _FLOAT32 * 2 * self._parameters.largest / self._shard


def _title(network: str) -> str:
    return network.replace("_", " ")


def _bytes_of_moments(recipe: OptimizerRecipe) -> float:
    """A parameter's two moments."""
    return 2 * (_FLOAT32 if recipe.bits == 32 else 1 + _FLOAT32 / 256)
