"""Checkpoints: tensors in safetensors, the rest in JSON, written whole or not at all.

A checkpoint is a folder `step-0000120` with `tensors.safetensors` and `state.json`. It is written beside its place and
renamed, so a process killed at any moment leaves either the old set of checkpoints or the new one.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from avd.types import UserError

_PREFIX = "step-"
_TENSORS, _STATE = "tensors.safetensors", "state.json"


def save_checkpoint(
    folder: Path, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any], keep: int
) -> None:
    """Write checkpoint `step` under `folder` and remove all but the newest `keep`."""
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob(".writing-*"):
        shutil.rmtree(stale)
    writing = folder / f".writing-{step}"
    writing.mkdir()
    save_file(_own_memory(tensors), writing / _TENSORS)
    (writing / _STATE).write_text(json.dumps({"step": step, **state}))
    for part in writing.iterdir():
        _sync(part)
    final = folder / f"{_PREFIX}{step:07d}"
    if final.exists():  # the same step again, after a resume from an older one
        shutil.rmtree(final)
    os.replace(writing, final)
    _sync(folder)
    for old in list_checkpoints(folder)[:-keep]:
        shutil.rmtree(old)


def list_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints under `folder`, oldest first."""
    return sorted(p for p in folder.glob(f"{_PREFIX}*") if p.is_dir())


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and state of one checkpoint. Raises UserError if it is damaged."""
    with _naming_damage(path):
        return load_file(path / _TENSORS), _read_state(path)


def check_newest(folder: Path, updates: int) -> None:
    """Refuse, before any work, a run of `updates` that could not go on from the newest checkpoint under `folder`.

    Raises UserError if it is past `updates`, or damaged as far as can be seen without reading its tensors.
    """
    for path in list_checkpoints(folder)[-1:]:
        with _naming_damage(path), safe_open(path / _TENSORS, framework="pt"):
            done = _read_state(path)["step"]
        if done > updates:
            raise UserError(
                f"{folder.parent} has {done} updates behind it: resume with at least so many, not {updates}"
            )


@contextmanager
def _naming_damage(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(
            f"checkpoint {path} is damaged ({error}): move it away and resume again to go on from the one before it"
        ) from error


def _read_state(path: Path) -> dict[str, Any]:
    state = json.loads((path / _STATE).read_text())
    if not isinstance(state, dict) or not isinstance(state.get("step"), int):
        raise ValueError(f"{_STATE} does not say which step it is of")
    return state


def pack_module(prefix: str, module: torch.nn.Module) -> dict[str, Tensor]:
    return {f"{prefix}.{k}": v for k, v in module.state_dict().items()}


def unpack_module(prefix: str, module: torch.nn.Module, tensors: Mapping[str, Tensor]) -> None:
    module.load_state_dict(_under(prefix, tensors))


def pack_optimizer(prefix: str, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The per-parameter state, flat, named by the parameter's index. Learning rates belong to the recipe, not here."""
    state = optimizer.state_dict()["state"]
    return {f"{prefix}.{i}.{k}": torch.as_tensor(v) for i, slots in state.items() for k, v in slots.items()}


def unpack_optimizer(prefix: str, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in _under(prefix, tensors).items():
        index, slot = key.split(".", 1)
        state.setdefault(int(index), {})[slot] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix + "."): v for k, v in tensors.items() if k.startswith(prefix + ".")}


def _own_memory(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """On the CPU, contiguous, no two in the same memory: safetensors refuses tied weights, as a UMT5 has them."""
    own: dict[str, Tensor] = {}
    taken: set[int] = set()
    for name, tensor in tensors.items():
        value = tensor.detach().cpu().contiguous()
        memory = value.untyped_storage().data_ptr()
        own[name] = value.clone() if memory in taken else value
        taken.add(memory)
    return own


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
