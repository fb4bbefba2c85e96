"""A network's weights, tensor by tensor, on their way into files: no more than one of them is in memory at a time.

The first rank writes a safetensors file as tensors arrive; the others take part in gathering them and get nothing. The
format is eight bytes that give the length of a JSON header, the header, which says where each tensor lies, and the
tensors' bytes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from avd.models.weights import Weights, read_tensor

_CODES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
_MOST_BYTES = 10 * 10**9
"""Bytes of a file before another one is begun, as diffusers has it."""


@dataclass(frozen=True)
class TensorStream:
    """Tensors by name, each made when it is reached.

    `make` is called once for each name, in the order of `shapes`, on every rank; it gives the tensor on the CPU of the
    first rank and None elsewhere.
    """

    shapes: Mapping[str, tuple[int, ...]]
    make: Callable[[str], Tensor | None]
    dtype: torch.dtype = torch.float32
    """What they are written in."""
    precise: frozenset[str] = frozenset()
    """Parts of the dotted names of tensors that are written in float32 all the same."""

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        """Name and tensor, in the dtype it is written in; nothing but the first rank gets any."""
        for name in self.shapes:
            tensor = self.make(name)
            if tensor is not None:
                yield name, tensor.to(self.dtype_of(name))
                del tensor  # before the next one is made

    def dtype_of(self, name: str) -> torch.dtype:
        return self.dtype if self.precise.isdisjoint(name.split(".")) else torch.float32

    def drain(self) -> None:
        """Take part in making every tensor, and keep none."""
        for _ in self:
            pass


def stream(weights: Weights) -> TensorStream:
    """Weights that one process reads."""
    return TensorStream(weights.shapes, lambda name: read_tensor(weights, name))


def write_stream(folder: Path, name: str, tensors: TensorStream, most: int = _MOST_BYTES) -> None:
    """Write `name`.safetensors into `folder`, or, past `most` bytes, several files and their index, as diffusers does.

    The one process that is given the tensors calls it.
    """
    parts = _parts(tensors, most)
    files = [f"{name}.safetensors"]
    if len(parts) > 1:
        files = [f"{name}-{i:05d}-of-{len(parts):05d}.safetensors" for i in range(1, len(parts) + 1)]
        total = sum(_bytes(tensors, each) for part in parts for each in part)
        places = {each: file for file, part in zip(files, parts, strict=True) for each in part}
        index = {"metadata": {"total_size": total}, "weight_map": places}
        (folder / f"{name}.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    arriving = iter(tensors)
    for file, part in zip(files, parts, strict=True):
        with (folder / file).open("wb") as out:
            _write_header(out, tensors, part)
            for expected in part:
                found, tensor = next(arriving)
                assert found == expected and tuple(tensor.shape) == tensors.shapes[found]
                out.write(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
                del tensor


def _parts(tensors: TensorStream, most: int) -> list[list[str]]:
    """The names of each file's tensors; one that is larger than `most` has a file of its own."""
    parts: list[list[str]] = [[]]
    size = 0
    for name in tensors.shapes:
        bytes_ = _bytes(tensors, name)
        if parts[-1] and size + bytes_ > most:
            parts.append([])
            size = 0
        parts[-1].append(name)
        size += bytes_
    return parts


def _write_header(out: BinaryIO, tensors: TensorStream, names: list[str]) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in names:
        start, end = end, end + _bytes(tensors, name)
        dtype = _CODES[tensors.dtype_of(name)]
        header[name] = {"dtype": dtype, "shape": list(tensors.shapes[name]), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the tensors begin at a multiple of eight
    out.write(len(text).to_bytes(8, "little") + text)


def _bytes(tensors: TensorStream, name: str) -> int:
    count = 1
    for length in tensors.shapes[name]:
        count *= length
    return count * tensors.dtype_of(name).itemsize
