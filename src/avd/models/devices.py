"""This process among those of a launch, and the device it computes on.

A launch is described by torchrun's variables, or by those of SLURM where `srun` starts the processes itself. Whoever
spreads work over processes begins with `read_launch`; nothing is connected here.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from avd.types import UserError

_MEETING_PLACE = ("MASTER_ADDR", "MASTER_PORT")
_VISIBLE = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")


@dataclass(frozen=True)
class Launch:
    """What the environment says of this process; `local` is its rank among those of its machine."""

    rank: int = 0
    size: int = 1
    local: int = 0
    shown_one_gpu: bool = False
    """Whether one GPU is visible because a scheduler, or the user, has chosen it for this process."""


def read_launch(environment: Mapping[str, str], *, connects: bool = False) -> Launch:
    """The launch that torchrun's variables describe, or without any those of a job step of SLURM; without either, a
    process of its own.

    `connects`: whether its processes are to talk to each other, for which they need a place to meet. Raises UserError
    for a variable that is missing or makes no sense.
    """
    shown_one = any(len(environment.get(key, "").split(",")) == 1 and environment.get(key) for key in _VISIBLE)
    if _is_job_step(environment):
        return _read_job_step(environment, bool(shown_one), connects)
    size = _integer(environment, "WORLD_SIZE", 1, smallest=1)
    rank = _integer(environment, "RANK", 0)
    if rank >= size:
        given = f"WORLD_SIZE is {size}" if environment.get("WORLD_SIZE") else "WORLD_SIZE is not set"
        raise UserError(f"RANK is {rank} and {given}: RANK counts from 0 to WORLD_SIZE - 1; {_START}")
    if size > 1:
        needed = ("RANK", "LOCAL_RANK", *(_MEETING_PLACE if connects else ()))
        missing = [key for key in needed if not environment.get(key)]
        if missing:
            raise UserError(f"WORLD_SIZE is {size} without {', '.join(missing)}: {_START}")
        if connects:
            _integer(environment, "MASTER_PORT", 0, smallest=1, largest=65_535)
    return Launch(rank, size, _integer(environment, "LOCAL_RANK", 0), bool(shown_one))


def _is_job_step(environment: Mapping[str, str]) -> bool:
    """Whether `srun` started several processes and nobody else did. A batch script, of which there is one however many
    tasks its job has, is in no step."""
    by_torchrun = any(environment.get(key, "").strip() for key in ("RANK", "WORLD_SIZE"))
    if by_torchrun or not environment.get("SLURM_STEP_ID", "").strip():
        return False
    return _integer(environment, "SLURM_NTASKS", 1, smallest=1) > 1


def _read_job_step(environment: Mapping[str, str], shown_one: bool, connects: bool) -> Launch:
    size = _integer(environment, "SLURM_NTASKS", 1, smallest=1)
    needed = ("SLURM_PROCID", "SLURM_LOCALID", *(_MEETING_PLACE if connects else ()))
    missing = [key for key in needed if not environment.get(key)]
    if missing:
        raise UserError(
            f"srun started {size} processes without {', '.join(missing)}: export MASTER_ADDR and MASTER_PORT before "
            "srun, or let srun start one torchrun per node"
        )
    if connects:
        _integer(environment, "MASTER_PORT", 0, smallest=1, largest=65_535)
    rank = _integer(environment, "SLURM_PROCID", 0)
    if rank >= size:
        raise UserError(f"SLURM_PROCID is {rank} and SLURM_NTASKS is {size}: {_START}")
    return Launch(rank, size, _integer(environment, "SLURM_LOCALID", 0), shown_one)


_START = "start with torchrun, or unset the variables"


def _integer(
    environment: Mapping[str, str], key: str, default: int, *, smallest: int = 0, largest: int | None = None
) -> int:
    text = environment.get(key, "").strip()
    if not text:
        return default
    if not text.isdecimal() or int(text) < smallest or (largest is not None and int(text) > largest):
        limits = f"at least {smallest}" if largest is None else f"from {smallest} to {largest}"
        raise UserError(f"{key} is {text!r}: it must be an integer, {limits}; {_START}")
    return int(text)


def pick_device(name: str, launch: Launch = Launch()) -> torch.device:
    """The device that "auto", "cpu" or "cuda" names, for one process of a launch.

    "auto" is a GPU if there is any. A process that is shown one GPU takes it, whatever its number among those of its
    machine; `engine.ranks` checks that no other has the same. Raises UserError if there are fewer GPUs than processes.
    """
    gpus = torch.cuda.device_count()
    if name == "cpu" or (name == "auto" and not gpus):
        return torch.device("cpu")
    if gpus == 1 and launch.shown_one_gpu:
        return torch.device("cuda", 0)
    if launch.local >= gpus:
        raise UserError(
            f"process {launch.local} of this machine finds {gpus} GPUs: start one process per GPU, show each its own "
            "by CUDA_VISIBLE_DEVICES, or set compute.device=cpu"
        )
    return torch.device("cuda", launch.local)


@contextmanager
def matmul_precision(device: torch.device, *, tf32: bool) -> Iterator[None]:
    """Matrix products in float32 round their factors to TF32 for the duration of a block, if asked and on a GPU.

    The setting is the process's and would reach a CPU's products too, so without a GPU it is left as it is.
    """
    before = torch.get_float32_matmul_precision()
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def give_back_memory(device: torch.device) -> None:
    """Free what only cycles of references keep, and let go of memory that torch holds in reserve on a GPU."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
