"""What making a video takes, stage by stage: encoding its prompt, denoising, decoding; and the cheapest ways that fit.

Parts take turns as `sampling.placement` says, so the memory needed is that of the largest stage. Weights are counted,
activations are measured on tensors that hold no data, as for training. Of 8-bit weights the linear layers of the blocks
have a byte per weight; their inputs are quantised too, and int8 products are summed in 32 bits.

A stage's time is its products and convolutions at a share of the peak, the decoder's at half of it, as its float32
convolutions run in TF32; and where weights wait in the host's memory, their way to the GPU, beside the arithmetic for
blocks and before it for all of the network. Loading is left out, and what the memory of the GPU slows down, which is a
large part of decoding.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import product
from typing import Any

import torch
from torch import nn

from avd.flow import few_step_sigmas
from avd.models.backbone import Backbone
from avd.models.settings import Settings
from avd.models.sizes import OtherParts, Sizes, Tiles
from avd.planning.activations import MeasuredPass, PassMeter, build_hollow
from avd.planning.flops import flops_of
from avd.planning.parts import MeasuredPart, measure_decoder, measure_text_encoder
from avd.planning.plan import Machine, allowance_for
from avd.sampling.placement import Placement
from avd.sampling.rollout import FULL, Strides, make_stages

HOST_LINK = 25e9
"""Bytes per second from the host's memory to a GPU: PCIe 4.0 with 16 lanes."""
_FLOAT32, _BFLOAT16 = 4, 2
_LATENTS_ALIVE = 10


@dataclass(frozen=True)
class Sampling:
    """How a video is sampled: the strides of each step, and whether each is guided, which takes two samples."""

    strides: tuple[Strides, ...]
    guided: bool = False

    @classmethod
    def of(cls, settings: Settings, steps: int | None = None) -> Sampling:
        """A student's own; of any other model `steps` guided ones, or if None those of a student of four."""
        timesteps = settings.student_timesteps
        if timesteps is not None and steps is None:
            stages = make_stages(few_step_sigmas(timesteps), settings.half_rate_stages, settings.half_resolution_stages)
            return cls(tuple(stage.strides for stage in stages))
        return cls((FULL,) * (steps or 4), guided=steps is not None and settings.guidance != 1.0)


@dataclass(frozen=True)
class StageCosts:
    """Bytes on the GPU and in the host's memory, and the operations and seconds of one video."""

    name: str
    weights: float
    activations: float
    host: float
    flops: float
    seconds: float

    @property
    def total(self) -> float:
        """Bytes on the GPU that are counted."""
        return self.weights + self.activations


@dataclass(frozen=True)
class GenerationPlan:
    """One way of placing a model's parts on one GPU."""

    placement: Placement
    machine: Machine
    stages: tuple[StageCosts, ...]

    @property
    def highest(self) -> StageCosts:
        return max(self.stages, key=lambda stage: stage.total)

    @property
    def allowance(self) -> float:
        return allowance_for(self.highest.total)

    @property
    def fits(self) -> bool:
        return self.highest.total + self.allowance <= self.machine.memory

    @property
    def seconds(self) -> float:
        """Duration of a video, its prompt's encoding included."""
        return sum(stage.seconds for stage in self.stages)

    def hours(self, videos: int, gpus: int = 1) -> float:
        """Hours until `videos` are made on `gpus`, each of which makes its share of them."""
        return math.ceil(videos / gpus) * self.seconds / 3600

    def to_json(self) -> dict[str, Any]:
        """Bytes, operations and seconds as numbers, with the options they are for."""
        placement = self.placement
        return {
            "options": {"offload": placement.offload, "tiling": placement.tiling, "weights": placement.weights},
            "stages": [{**asdict(stage), "total": stage.total} for stage in self.stages],
            "allowance": self.allowance,
            "seconds": self.seconds,
            "fits": self.fits,
        }


@dataclass(frozen=True)
class GenerationPlanner:
    """Plans for one model; what was measured for one plan serves the next."""

    sizes: Sizes
    parts: OtherParts
    sampling: Sampling
    clip: tuple[int, int, int]
    """Frames, and height and width in pixels."""

    def denoising_by_strides(self, machine: Machine) -> dict[str, float]:
        """Seconds of denoising one video, by how a student of so many steps may be sampled: the first half of its steps
        full, at half rate, and at half resolution too, as far as the clips halve. Empty where steps are guided."""
        steps = len(self.sampling.strides)
        if self.sampling.guided or steps < 2:
            return {}
        ways: dict[str, Strides] = {"full": FULL}
        if self.sizes.frames() % 2:
            ways["half rate"] = (2, 1)
            if self.sizes.halves:
                ways["half rate and resolution"] = (2, 2)
        flops = {strides: flops_of(self.sizes, strides).forward for strides in ways.values()}
        early = steps // 2
        return {
            name: machine.seconds_of(early * flops[strides] + (steps - early) * flops[FULL])
            for name, strides in ways.items()
        }

    @cached_property
    def _meter(self) -> PassMeter:
        return PassMeter(self.sizes)

    def plan(self, placement: Placement, machine: Machine) -> GenerationPlan:
        return GenerationPlan(
            placement,
            machine,
            (self._encoding(machine), self._denoising(placement, machine), self._decoding(placement, machine)),
        )

    def cheapest(self, machine: Machine) -> list[GenerationPlan]:
        """The plans that fit and have no option too many: without any of them they would not fit. The fastest comes
        first, and among equals those that keep the weights' own precision. If none fits, the one that comes nearest."""
        plans = [self.plan(placement, machine) for placement in _placements()]
        fitting = [plan for plan in plans if plan.fits]
        options = [_options(plan.placement) for plan in fitting]
        fewest = [plan for plan, own in zip(fitting, options, strict=True) if not any(other < own for other in options)]
        fewest.sort(key=lambda plan: (round(plan.seconds, 3), plan.placement.weights is not None))
        return fewest or [min(plans, key=lambda plan: plan.highest.total)]

    def _encoding(self, machine: Machine) -> StageCosts:
        text = self._text_encoder
        return StageCosts(
            "encoding the prompt",
            text.weights,
            text.activations,
            text.weights,
            text.flops,
            machine.seconds_of(text.flops),
        )

    def _denoising(self, placement: Placement, machine: Machine) -> StageCosts:
        block, outside = self._network(placement.weights)
        network = self.sizes.networks * (self.sizes.layers * block + outside)
        samples = 2 if self.sampling.guided else 1
        memory = self._meter(MeasuredPass(samples, gradient=False, dtype=torch.bfloat16))
        flops = samples * sum(flops_of(self.sizes, strides).forward for strides in self.sampling.strides)
        on_gpu, seconds = network, machine.seconds_of(flops)
        if placement.offload == "blocks":
            next_to = min(2, self.sizes.layers) * block  # the one at work, and the next on its way
            on_gpu = self.sizes.networks * outside + next_to
            seconds = max(seconds, len(self.sampling.strides) * self.sizes.layers * block / HOST_LINK)
        elif placement.offload == "model":
            seconds += 2 * network / HOST_LINK  # there, and back for the decoder
        block_as_loaded, outside_as_loaded = self._network(None)
        as_loaded = self.sizes.networks * (self.sizes.layers * block_as_loaded + outside_as_loaded)
        activations = memory.peak + self._temporaries(placement, samples) + self._batch()
        weights = on_gpu + self._decoder.weights  # which stays there from the first video on
        return StageCosts("denoising", weights, activations, as_loaded, flops, seconds)

    def _decoding(self, placement: Placement, machine: Machine) -> StageCosts:
        block, outside = self._network(placement.weights)
        blocks, count = self.sizes.layers * block, self.sizes.networks
        network = count * (blocks + outside)
        waiting = {"none": 0.0, "model": network, "blocks": count * blocks}[placement.offload or "none"]
        decoder = self._tiled_decoder if placement.tiling else self._decoder
        weights = decoder.weights + network - waiting
        seconds = machine.seconds_of(decoder.flops, tf32=True)
        return StageCosts("decoding", weights, decoder.activations + self._batch(), waiting, decoder.flops, seconds)

    def _network(self, weights: str | None) -> tuple[float, float]:
        """Bytes of one block and of what is outside of the blocks."""
        network = self._one_block
        inside = {id(parameter) for block in network.blocks for parameter in block.parameters()}
        small = {id(layer.weight) for layer in self._layers} if weights is not None else set()
        sizes = {True: 0.0, False: 0.0}
        for name, parameter in network.named_parameters():
            precise = not network.float32_names.isdisjoint(name.split("."))
            size = 1 if id(parameter) in small else _FLOAT32 if precise else _BFLOAT16
            sizes[id(parameter) in inside] += size * parameter.numel()
        return sizes[True], sizes[False]

    def _temporaries(self, placement: Placement, samples: int) -> float:
        """Bytes of the largest product with 8-bit weights: its inputs quantised and, of int8, its sums in 32 bits."""
        if placement.weights is None:
            return 0.0
        summed = _FLOAT32 if placement.weights == "int8" else 0
        rows = samples * self.sizes.tokens()
        return rows * max(layer.in_features + summed * layer.out_features for layer in self._layers)

    def _batch(self) -> float:
        """Latents at hand in a step, and prompts."""
        prompt = sum(math.prod(shape) for shape in self.sizes.conditions.values())
        return _FLOAT32 * (_LATENTS_ALIVE * math.prod(self.sizes.latent_CFHW) + 2 * prompt)

    @cached_property
    def _one_block(self) -> Backbone:
        return build_hollow(replace(self.sizes, layers=1), torch.bfloat16, None)

    @property
    def _layers(self) -> list[nn.Linear]:
        """The linear layers of a block."""
        modules = (module for block in self._one_block.blocks for module in block.modules())
        return [module for module in modules if isinstance(module, nn.Linear)]

    @cached_property
    def _text_encoder(self) -> MeasuredPart:
        return measure_text_encoder(self.parts)

    @cached_property
    def _decoder(self) -> MeasuredPart:
        return measure_decoder(self.parts, self.sizes.latent_CFHW)

    @cached_property
    def _tiled_decoder(self) -> MeasuredPart:
        """One tile after the other, row by row, each kept until all are there to be joined."""
        tiles, (frames, high, wide) = self.parts.tiles, self.clip
        side = tiles.side * self.sizes.latent_CFHW[2] // high
        channels, count, height, width = self.sizes.latent_CFHW
        one = measure_decoder(self.parts, (channels, count, min(side, height), min(side, width)))
        full = min(tiles.side, high) * min(tiles.side, wide)
        held = peak = 0.0
        for area in (y * x for y in _covered(high, tiles) for x in _covered(wide, tiles)):
            peak = max(peak, held + one.activations * area / full)
            held += 3 * _FLOAT32 * frames * area
        joined = 2 * 3 * _FLOAT32 * frames * high * wide  # rows, and the picture of them
        areas = held / (3 * _FLOAT32 * frames)
        return MeasuredPart(one.weights, max(peak, held + joined), one.flops * areas / full)


def _covered(length: int, tiles: Tiles) -> list[int]:
    """Pixels of a length that each tile covers."""
    return [min(tiles.side, length - begin) for begin in range(0, length, tiles.stride)]


def _placements() -> Iterator[Placement]:
    for weights, offload, tiling in product((None, "float8", "int8"), ("none", "model", "blocks"), (False, True)):
        yield Placement(offload=offload, tiling=tiling, weights=weights)  # type: ignore[arg-type]


def _options(placement: Placement) -> frozenset[str]:
    """What it asks for beyond a network of its own precision beside a decoder of one piece."""
    options = {f"weights {placement.weights}", f"offload {placement.offload}", f"tiling {placement.tiling}"}
    return frozenset(options - {"weights None", "offload none", "tiling False"})
