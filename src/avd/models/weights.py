"""A network's weights without the network: their names and shapes now, their values when they are asked for.

A large network is never in memory as a whole: each rank reads the regions that are its shards, and an export takes one
tensor after the other. Files are known by the headers of safetensors.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from safetensors import safe_open
from torch import Tensor, nn

_NAMES = ("diffusion_pytorch_model.safetensors", "model.safetensors")
_MAPPED = 2**28
"""Bytes read of a file before its memory map is made again: pages of a map stay resident until it is closed."""


class Weights(Protocol):
    """Tensors by name, read or made as they are asked for."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Every tensor's, by its name in the state dict of a family's own transformer."""
        ...

    def region(self, name: str, offset: tuple[int, ...], shape: tuple[int, ...]) -> Tensor:
        """The values from `offset` on, of this shape, in whatever dtype they are kept, on the CPU.

        It may be a view: copy what is to be changed.
        """
        ...


def read_tensor(weights: Weights, name: str) -> Tensor:
    """All of a tensor."""
    shape = weights.shapes[name]
    return weights.region(name, (0,) * len(shape), shape)


def slices(offset: tuple[int, ...], shape: tuple[int, ...]) -> tuple[slice, ...]:
    """The index of a region."""
    return tuple(slice(start, start + length) for start, length in zip(offset, shape, strict=True))


class MemoryWeights:
    """Tensors that are in memory, as `Weights`."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = dict(tensors)
        self.shapes = {name: tuple(tensor.shape) for name, tensor in self._tensors.items()}

    def region(self, name: str, offset: tuple[int, ...], shape: tuple[int, ...]) -> Tensor:
        return self._tensors[name].detach()[slices(offset, shape)].cpu()


class Renamed:
    """Other weights by other names: `names` says what each is called there."""

    def __init__(self, weights: Weights, names: Mapping[str, str]) -> None:
        self._weights, self._names = weights, dict(names)
        self.shapes = {name: weights.shapes[there] for name, there in self._names.items()}

    def region(self, name: str, offset: tuple[int, ...], shape: tuple[int, ...]) -> Tensor:
        return self._weights.region(self._names[name], offset, shape)


class WeightFiles:
    """The tensors of some safetensors files, as `Weights`. Raises SafetensorError if a file is damaged or cut short."""

    def __init__(self, files: Iterable[Path]) -> None:
        self._files: dict[str, Path] = {}
        self._open: tuple[Path, Any] | None = None
        self._read = 0
        self.shapes: dict[str, tuple[int, ...]] = {}
        for path in files:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 (it is no mapping)
                    self._files[name] = path
                    self.shapes[name] = tuple(file.get_slice(name).get_shape())

    @classmethod
    def of_part(cls, folder: Path) -> WeightFiles:
        """The files of one part of a diffusers folder, in one file or sharded. Raises OSError if it has none."""
        for name in _NAMES:
            index = folder / f"{name}.index.json"
            if index.exists():
                return cls(
                    folder / shard for shard in sorted(set(json.loads(index.read_text())["weight_map"].values()))
                )
            if (folder / name).exists():
                return cls([folder / name])
        raise OSError(f"{folder.name} has no weights in safetensors")

    def region(self, name: str, offset: tuple[int, ...], shape: tuple[int, ...]) -> Tensor:
        path = self._files[name]
        if self._open is None or self._open[0] != path or self._read > _MAPPED:
            self.close()
            self._open = path, safe_open(path, framework="pt")
        file = self._open[1]
        values: Tensor = file.get_slice(name)[slices(offset, shape)] if shape else file.get_tensor(name)
        values = values.clone()  # of the map, which would stay open as long as the values
        self._read += values.nbytes
        return values

    def close(self) -> None:
        """Let go of the file that was read last."""
        self._open, self._read = None, 0

    def first_values(self, name: str, count: int) -> Tensor:
        """The first `count` values of a tensor, flattened, in float32. Reads no more of it than needed."""
        shape = self.shapes[name]
        with safe_open(self._files[name], framework="pt") as file:
            if not shape:
                return file.get_tensor(name).flatten().float()
            rows = math.ceil(count / max(math.prod(shape[1:]), 1))
            return file.get_slice(name)[:rows].flatten()[:count].float()


def check_fits(skeleton: nn.Module, shapes: Mapping[str, tuple[int, ...]], *, exactly: bool = False) -> None:
    """Raise ValueError unless tensors of these `shapes` fill every weight of `skeleton`; `exactly`: and no more."""
    expected = skeleton.state_dict()
    if exactly and (unknown := min(shapes.keys() - expected.keys(), default=None)):
        raise ValueError(f"it holds what its config has no place for, such as {unknown}")
    for name, alias in stored_names(skeleton, shapes).items():
        if alias is None:
            raise ValueError(f"it lacks weights, such as {name}")
        if shapes[alias] != tuple(expected[name].shape):
            raise ValueError(f"{name} has shape {shapes[alias]}, and its config says {tuple(expected[name].shape)}")


def stored_names(skeleton: nn.Module, stored: Mapping[str, object]) -> dict[str, str | None]:
    """The name under which each weight of `skeleton` is in a file; None if it is not. Tied weights are stored once."""
    tied: dict[int, list[str]] = {}
    for name, parameter in skeleton.named_parameters(remove_duplicate=False):
        tied.setdefault(id(parameter), []).append(name)
    aliases = {name: names for names in tied.values() for name in names}
    return {
        name: next((alias for alias in (name, *aliases.get(name, ())) if alias in stored), None)
        for name in skeleton.state_dict()
    }


def check_depth(shapes: Mapping[str, tuple[int, ...]], prefix: str, layers: int) -> None:
    """Raise ValueError unless there is a tensor of the last of `layers` blocks, which are named `prefix` and a number.

    A skeleton takes a while to build for each of its blocks; this tells beforehand that a config names too many.
    """
    if not any(name.startswith(f"{prefix}{layers - 1}.") for name in shapes):
        numbers = [name.removeprefix(prefix).partition(".")[0] for name in shapes if name.startswith(prefix)]
        there_are = 1 + max((int(number) for number in numbers if number.isdigit()), default=-1)
        raise ValueError(f"it lacks weights, such as {prefix}{there_are}., as its config says {layers:,} layers")
