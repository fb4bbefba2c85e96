"""What rounding costs is measured against what was learnt, and the files hold the rounded weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from avd.export import format_named
from avd.export.format import Student
from avd.export.rounding import rounded, rounding_loss
from avd.export.writing import write
from avd.models.streams import stream
from avd.models.weights import MemoryWeights
from helpers.tiny import tiny_model

BASE = {"a.weight": torch.tensor([1.0, 2.0, -4.0]), "b.norm2.weight": torch.tensor([1.0])}


def moved(step: float) -> Student:
    """A student each of whose weights lies `step` above what it was distilled from."""
    return Student(tiny_model(), stream(MemoryWeights({name: tensor + step for name, tensor in BASE.items()})))


@pytest.mark.parametrize(
    ("step", "loss"),
    [
        (2.0**-12, (3 / 4) ** 0.5),  # below every step of bfloat16 at these values: but for the norm, it is all lost
        (2.0**-4, 0.0),  # on the grid of each of them
    ],
)
def test_the_loss_is_the_error_as_a_share_of_what_was_learnt(step: float, loss: float) -> None:
    assert rounding_loss(moved(step), MemoryWeights(BASE), torch.bfloat16) == pytest.approx(loss, abs=1e-6)


def test_a_student_that_learnt_nothing_has_no_loss() -> None:
    assert rounding_loss(moved(0.0), MemoryWeights(BASE), torch.bfloat16) is None


def test_the_files_are_smaller_and_read_by_stock_code(tmp_path: Path) -> None:
    model = tiny_model()
    student = Student(model, stream(model.weights()), changes={"student_timesteps": (1000, 522)})
    for name, each in {"full": student, "half": rounded(student, torch.bfloat16)}.items():
        write(format_named("diffusers"), tmp_path / name, each, verify=True)
    full, half = (
        load_file(tmp_path / name / "transformer" / "diffusion_pytorch_model.safetensors") for name in ("full", "half")
    )
    precise = model.velocity().float32_names
    for name, tensor in full.items():
        expected = tensor if precise.intersection(name.split(".")) else tensor.bfloat16()
        assert torch.equal(half[name], expected)
