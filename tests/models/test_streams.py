"""A stream of tensors is written as safetensors reads it, in one file or several, one tensor in memory at a time."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from avd.models.streams import TensorStream, stream, write_stream
from avd.models.weights import MemoryWeights, WeightFiles

TENSORS = {
    "blocks.0.weight": torch.randn(3, 5, generator=torch.Generator().manual_seed(0)),
    "blocks.0.bias": torch.randn(3, generator=torch.Generator().manual_seed(1)),
    "blocks.1.norm.weight": torch.randn(7, generator=torch.Generator().manual_seed(2)),
    "scale": torch.tensor(2.5),
}


def test_one_file_is_what_safetensors_reads(tmp_path: Path) -> None:
    write_stream(tmp_path, "model", stream(MemoryWeights(TENSORS)))
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    found = load_file(tmp_path / "model.safetensors")
    assert found.keys() == TENSORS.keys() and all(torch.equal(found[name], TENSORS[name]) for name in TENSORS)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}  # without which transformers and diffusers refuse a file


@pytest.mark.parametrize("most", [1, 64, 90])
def test_several_files_have_an_index(most: int, tmp_path: Path) -> None:
    write_stream(tmp_path, "diffusion_pytorch_model", stream(MemoryWeights(TENSORS)), most)
    index = json.loads((tmp_path / "diffusion_pytorch_model.safetensors.index.json").read_text())
    files = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert len(files) > 1 and files == sorted(set(index["weight_map"].values()))
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in TENSORS.values())
    for file in files:
        held = load_file(tmp_path / file)
        assert {name for name, place in index["weight_map"].items() if place == file} == held.keys()
        assert len(held) == 1 or sum(tensor.nbytes for tensor in held.values()) <= most
    weights = WeightFiles.of_part(tmp_path)
    for name, tensor in TENSORS.items():
        assert torch.equal(weights.region(name, (0,) * tensor.ndim, tuple(tensor.shape)), tensor)
        if tensor.ndim:
            assert torch.equal(weights.region(name, (1, *[0] * (tensor.ndim - 1)), (1, *tensor.shape[1:])), tensor[1:2])


def test_rounded_tensors_keep_what_is_precise(tmp_path: Path) -> None:
    rounded = replace(stream(MemoryWeights(TENSORS)), dtype=torch.bfloat16, precise=frozenset({"norm"}))
    write_stream(tmp_path, "model", rounded)
    found = load_file(tmp_path / "model.safetensors")
    assert found["blocks.1.norm.weight"].dtype == torch.float32 and found["blocks.0.weight"].dtype == torch.bfloat16
    assert torch.equal(found["blocks.0.weight"], TENSORS["blocks.0.weight"].bfloat16())


def test_tensors_are_made_once_and_in_order(tmp_path: Path) -> None:
    made: list[str] = []

    def make(name: str) -> Tensor:
        made.append(name)
        return TENSORS[name]

    shapes = {name: tuple(tensor.shape) for name, tensor in TENSORS.items()}
    write_stream(tmp_path, "model", TensorStream(shapes, make))
    assert made == list(TENSORS)


def test_other_ranks_take_part_and_write_nothing() -> None:
    made: list[str] = []
    TensorStream({"a": (2,), "b": ()}, lambda name: made.append(name)).drain()
    assert made == ["a", "b"]
