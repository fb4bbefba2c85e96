"""A plan: what a recipe takes on a number of GPUs, whether it fits, and if not, what would make it.

Nothing is loaded but config files. `fitting` tries changes; this module describes one recipe as it stands.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from avd.config import Recipe
from avd.models.sizes import Sizes
from avd.planning.activations import PassMeter
from avd.planning.memory import Account, Moment, Parameters, Resident, SizedNetwork, count_parameters
from avd.planning.work import Work, work_of

H100_TFLOPS = {"bfloat16": 989.0, "TF32": 494.5, "float32": 67.0}
"""bfloat16 and TF32 on its tensor cores, dense; float32 without them, as torch multiplies by default."""
_CONTEXT, _FRAGMENTS = 2e9, 0.05
_PROCESS = 3e9
"""Bytes of host memory that a process with its libraries takes, without weights: measured, 0.7 GB with a build of torch
for CPUs; CUDA's libraries and context are known to take about 2 GB more."""


def precision_of(recipe: Recipe) -> str:
    """What products of matrices are computed in, by its name in `H100_TFLOPS`."""
    compute = recipe.compute
    return "TF32" if compute.tf32 and compute.dtype == "float32" else compute.dtype


@dataclass(frozen=True)
class Machine:
    """`gpus`, each with `memory` bytes, that reach the share `mfu` of `peak_tflops` (None: an H100's)."""

    gpus: int = 1
    memory: float = 80e9
    mfu: float = 0.4
    peak_tflops: float | None = None

    def peak_of(self, recipe: Recipe) -> float:
        """TFLOP/s of a GPU in the recipe's precision."""
        return self.peak_tflops or H100_TFLOPS[precision_of(recipe)]

    def seconds_of(self, flops: float, *, tf32: bool = False) -> float:
        """How long a GPU takes for operations in bfloat16, or in TF32, which is half as fast."""
        rate = self.mfu * (self.peak_tflops or H100_TFLOPS["bfloat16"]) * 1e12
        return (2 if tf32 else 1) * flops / rate


def allowance_for(counted: float) -> float:
    """Bytes that a GPU needs beside those counted: its context, workspaces of libraries, fragments."""
    return _CONTEXT + _FRAGMENTS * counted


@dataclass(frozen=True)
class Plan:
    """One recipe on one machine. Activations are measured when they are first asked for."""

    recipe: Recipe
    machine: Machine
    sizes: Sizes
    others: Mapping[str, Sizes]
    """Sizes of the networks that differ from the student's, by the name of their role."""
    parameters: Parameters
    resident: Resident
    work: tuple[Work, ...]
    account: Account = field(repr=False)

    def sizes_of(self, role: str) -> Sizes:
        return self.others.get(role, self.sizes)

    @cached_property
    def moments(self) -> list[Moment]:
        return self.account.moments()

    @property
    def highest(self) -> Moment:
        return max(self.moments, key=lambda moment: moment.total)

    @property
    def peak(self) -> float:
        """Bytes on a rank."""
        return self.resident.total + self.highest.total

    @property
    def host(self) -> float:
        """Bytes of a machine's own memory for a rank. On a CPU all of the run is there."""
        on_cpu = self.peak if self.recipe.compute.device == "cpu" else 0.0
        return _PROCESS + on_cpu + self.account.copied

    @property
    def allowance(self) -> float:
        """Bytes for what is not counted: the device's context, workspaces of libraries, fragments. A CPU has none."""
        return allowance_for(self.peak) if self.recipe.compute.device != "cpu" else 0.0

    @property
    def fits(self) -> bool:
        memory = self.machine.memory
        return self.resident.total < memory and self.peak + self.allowance <= memory

    @property
    def flops(self) -> float:
        """Operations of a cycle, over all clips of the batch."""
        return self.recipe.training.batch * sum(part.flops for part in self.work)

    @property
    def seconds(self) -> float:
        """Duration of an update, with its fake-score updates."""
        return self.flops / (self.machine.gpus * self.machine.mfu * self.machine.peak_of(self.recipe) * 1e12)

    def to_json(self) -> dict[str, Any]:
        """Bytes, operations and seconds as numbers, with the recipe and the machine they are for."""
        sizes, parameters = self.sizes, self.parameters
        return {
            "recipe": self.recipe.model_dump(mode="json"),
            "machine": {**asdict(self.machine), "peak_tflops": self.machine.peak_of(self.recipe)},
            "model": {
                "parameters": parameters.network,
                "adapter_parameters": parameters.adapter,
                "latents": list(sizes.latent_CFHW),
                "tokens": sizes.tokens(),
            },
            "bytes": {
                "resident": {**asdict(self.resident), "total": self.resident.total},
                "moments": [{**asdict(moment), "total": moment.total} for moment in self.moments],
                "peak": self.peak,
                "host": self.host,
                "allowance": self.allowance,
            },
            "work": [asdict(part) for part in self.work],
            "flops_per_cycle": self.flops,
            "seconds_per_update": self.seconds,
            "fits": self.fits,
        }


class Planner:
    """Plans for recipes of one model; what was measured for one plan serves the next."""

    def __init__(self, sizes: Sizes, others: Mapping[str, Sizes] | None = None) -> None:
        """`sizes` are the model's, at the size of the run's clips; `others` those of roles whose networks differ."""
        self.sizes, self.others = sizes, dict(others or {})
        self._meters = {name: PassMeter(each) for name, each in {"student": sizes, **self.others}.items()}
        self._parameters: dict[tuple[str, str], Parameters] = {}

    def plan(self, recipe: Recipe, machine: Machine) -> Plan:
        """What `recipe` takes on `machine`; `distillation.preflight` says which numbers of GPUs go with a recipe."""
        clips, rest = divmod(recipe.training.batch * recipe.compute.context, machine.gpus)
        assert clips and not rest
        student, others = self._network(recipe, "student"), {name: self._network(recipe, name) for name in self.others}
        account = Account(recipe, student, others, machine.gpus)
        work = work_of(recipe, self.sizes, self.others, in_parts=(recipe.compute.microbatch or clips) < clips)
        return Plan(
            recipe, machine, self.sizes, self.others, student.parameters, account.resident(), tuple(work), account
        )

    def _network(self, recipe: Recipe, role: str) -> SizedNetwork:
        meter = self._meters[role]
        if (role, recipe.roles) not in self._parameters:
            adapters = recipe.adapters if recipe.roles == "adapters" and role != "teacher" else None
            self._parameters[role, recipe.roles] = count_parameters(meter.sizes, adapters)
        return SizedNetwork(meter, self._parameters[role, recipe.roles])
