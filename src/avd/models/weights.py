"""Weights on disk, known by the headers of their safetensors files: names and shapes without reading a tensor."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path

from safetensors import safe_open
from torch import Tensor, nn

_NAMES = ("diffusion_pytorch_model.safetensors", "model.safetensors")


class WeightFiles:
    """The tensors of some safetensors files. Raises SafetensorError if a file is damaged or cut short."""

    def __init__(self, files: Iterable[Path]) -> None:
        self._files: dict[str, Path] = {}
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
