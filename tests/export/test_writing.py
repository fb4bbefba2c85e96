"""What stock code reads back is compared tensor by tensor, and a student that differs is not put in place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from avd.export.format import Student
from avd.export.writing import compare, write
from avd.models.family import TextToVideo
from avd.models.streams import TensorStream, stream
from avd.models.weights import MemoryWeights
from avd.types import UserError
from helpers.tiny import tiny_model

WEIGHTS = {"a": torch.tensor([1.0, -4.0]), "b": torch.zeros(2, 2)}
STEP = 4 * torch.finfo(torch.float32).eps
"""A unit in the last place of the largest value of `a`."""


@dataclass(frozen=True)
class Lossy:
    """A format that reads back what `fault` makes of the weights."""

    fault: Callable[[dict[str, Tensor]], Mapping[str, Tensor]]
    tolerance: float = 2.0
    name: str = "lossy"
    help: str = "nothing"

    def refusal(self, student: Student) -> str | None:
        return None

    def tensors(self, student: Student) -> TensorStream:
        return student.weights

    def write(self, folder: Path, student: Student, tensors: TensorStream) -> None:
        (folder / "file").write_text("here")

    def reload(self, folder: Path, model: TextToVideo) -> dict[str, Tensor]:
        return dict(self.fault({name: tensor.clone() for name, tensor in WEIGHTS.items()}))


@pytest.fixture(scope="module")
def student() -> Student:
    return Student(tiny_model(), stream(MemoryWeights(WEIGHTS)))


def off_by(steps: float) -> Lossy:
    return Lossy(lambda w: {**w, "a": w["a"] + torch.tensor([steps * STEP, 0.0])})


def test_deviations_are_counted_in_units_of_the_largest_value(student: Student, tmp_path: Path) -> None:
    assert compare(Lossy(lambda w: w), tmp_path, student).ulps == 0
    found = compare(off_by(1.5), tmp_path, student)
    assert found.tensor == "a" and found.ulps == pytest.approx(1.5, abs=0.2)


def test_the_coarser_dtype_counts(student: Student, tmp_path: Path) -> None:
    rounded = Lossy(lambda w: {**w, "a": (w["a"] + 1.0).bfloat16() - 1.0}, tolerance=1.0)
    assert compare(rounded, tmp_path, student).ulps <= 1
    third = Student(student.model, stream(MemoryWeights({"a": torch.tensor([1 / 3, 1.0])})))
    found = compare(Lossy(lambda w: {"a": torch.tensor([1 / 3, 1.0]).bfloat16()}), tmp_path, third)
    assert 0 < found.ulps <= 0.5


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (lambda w: {"a": w["a"]}, "b is missing"),
        (lambda w: {**w, "c": w["a"]}, "c is not in the student"),
        (lambda w: {**w, "b": w["b"][:1]}, r"b is of shape \(1, 2\), not \(2, 2\)"),
        (lambda w: {**w, "a": w["a"] + 3 * STEP}, "a is off by 3 units in the last place, over 2"),
        (lambda w: {**w, "a": w["a"] * float("nan")}, "a is off by nan"),
        (lambda w: {**w, "b": w["b"] + 1e-9}, "b is off by inf"),
    ],
)
def test_what_differs_is_refused_and_not_put_in_place(
    fault: Callable[[dict[str, Tensor]], Mapping[str, Tensor]], message: str, student: Student, tmp_path: Path
) -> None:
    path = tmp_path / "out"
    write(Lossy(lambda w: w), path, student, verify=True)
    (path / "file").write_text("old")
    with pytest.raises(UserError, match=message):
        write(Lossy(fault), path, student, verify=True)
    assert (path / "file").read_text() == "old" and [part.name for part in tmp_path.iterdir()] == ["out"]
