"""A student that was written is opened again, and written in other formats."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from avd.export import format_named
from avd.export.folder import open_student
from avd.export.format import Student
from avd.export.writing import compare, write
from avd.models.family import load_model
from avd.types import UserError
from helpers.students import make_student
from helpers.tiny import tiny_model

LORA, FOLDER = format_named("lora"), format_named("diffusers")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("base") / "model"
    tiny_model().save(path)
    return path


def test_a_run_stands_for_its_student(base: Path, tmp_path: Path) -> None:
    student = make_student(base, adapters=False, interpolator=True)
    write(FOLDER, tmp_path / "run" / "student", student)
    for name in ("run", "run/student"):
        found = open_student(str(tmp_path / name))
        assert found.settings == student.settings and found.interpolator is not None
        compare(FOLDER, tmp_path / "run" / "student", found)
        assert found.adapter is None and LORA.refusal(found) is not None


def test_an_adapter_is_written_again_and_merged(base: Path, tmp_path: Path) -> None:
    student = make_student(base, adapters=True)
    write(LORA, tmp_path / "lora", student)
    found = open_student(str(tmp_path / "lora"))
    write(LORA, tmp_path / "again", found, verify=True)
    files = sorted(part.name for part in (tmp_path / "lora").iterdir())
    assert files == sorted(part.name for part in (tmp_path / "again").iterdir())
    assert all((tmp_path / "lora" / f).read_bytes() == (tmp_path / "again" / f).read_bytes() for f in files)
    write(FOLDER, tmp_path / "merged", found, verify=True)
    merged, expected = load_model(str(tmp_path / "merged")).velocity().transformer.state_dict(), dict(student.weights)
    assert all(torch.allclose(merged[name], expected[name], rtol=1e-5, atol=1e-6) for name in expected)
    assert load_model(str(tmp_path / "merged")).settings == student.settings


def test_what_has_no_base_to_load_cannot_be_a_lora(base: Path, tmp_path: Path) -> None:
    adapter = make_student(base, adapters=True)
    in_memory = Student(tiny_model(), adapter.weights, adapter.adapter)
    assert "made in memory" in (LORA.refusal(in_memory) or "")
    write(LORA, tmp_path / "lora", adapter)
    of_a_lora = make_student(tmp_path / "lora", adapters=True)
    assert "is itself a LoRA" in (LORA.refusal(of_a_lora) or "")
    write(FOLDER, tmp_path / "merged", of_a_lora, verify=True)


def test_a_many_step_model_is_no_student(base: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a many-step model"):
        open_student(str(base))
    with pytest.raises(UserError, match="there is no model"):
        open_student(str(tmp_path / "nothing"))


def test_a_damaged_adapter_is_one_line(base: Path, tmp_path: Path) -> None:
    write(LORA, tmp_path / "lora", make_student(base, adapters=True))
    (weights,) = (tmp_path / "lora").glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"the adapter .*lora does not fit its base: .*header"):
        open_student(str(tmp_path / "lora"))
