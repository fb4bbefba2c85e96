"""What holds for every export format, of students of every family, and for one more format that is a single file."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from avd.export import format_named, formats, writing
from avd.export.format import Format, Student
from avd.export.writing import compare, write
from avd.models.interpolator import FrameInterpolator
from avd.models.settings import read_settings
from avd.models.streams import TensorStream
from avd.types import UserError
from helpers.added_formats import toy_format
from helpers.families import FAMILIES, fake_family, save_model
from helpers.killing import before, before_rename_to, in_a_fork
from helpers.students import make_student

__all__ = ["fake_family", "toy_format"]

pytestmark = pytest.mark.usefixtures("fake_family", "toy_format")
each_format = pytest.mark.parametrize("name", [*formats(), "toy"])
both_roles = pytest.mark.parametrize("adapters", [False, True], ids=["full", "adapters"])


@pytest.fixture(scope="module", params=FAMILIES)
def base(request: pytest.FixtureRequest, fake_family: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bases") / request.param
    save_model(request.param, path)
    return path


def accepted(name: str, base: Path, seed: int = 0) -> tuple[Format, Student]:
    """The format, with a student that it takes."""
    format = format_named(name)
    for adapters in (True, False):
        student = make_student(base, adapters=adapters, seed=seed)
        if format.refusal(student) is None:
            return format, student
    pytest.skip(f"{name} takes no student of {base.name}")


@each_format
def test_a_format_says_what_it_is(name: str) -> None:
    format = format_named(name)
    assert format.name == name and format.tolerance >= 0
    assert format.help and "\n" not in format.help and not format.help.endswith(".")


@both_roles
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@each_format
def test_stock_code_reads_back_what_is_written(
    name: str, dtype: torch.dtype, adapters: bool, base: Path, tmp_path: Path
) -> None:
    format, student = format_named(name), make_student(base, adapters=adapters, dtype=dtype)
    refusal = format.refusal(student)
    if refusal is not None:
        assert refusal and "\n" not in refusal
        with pytest.raises(UserError) as raised:
            write(format, tmp_path / "out", student)
        assert str(raised.value) == f"the student cannot be written as {name}: {refusal}"
        assert not any(tmp_path.iterdir())
        return
    write(format, tmp_path / "out", student, verify=True)
    deviation = compare(format, tmp_path / "out", student)
    assert deviation.ulps <= format.tolerance and deviation.tensor in student.weights.shapes
    with pytest.raises(UserError, match="differs from the one that was written"):
        compare(format, tmp_path / "out", make_student(base, adapters=adapters, dtype=dtype, seed=1))


@each_format
def test_settings_and_interpolator_lie_beside_the_weights(name: str, base: Path, tmp_path: Path) -> None:
    format, student = accepted(name, base)
    complete = replace(student, interpolator=make_student(base, adapters=False, interpolator=True).interpolator)
    student = student if format.refusal(complete) else complete
    write(format, tmp_path / "out", student)
    settings = read_settings(tmp_path / "out")
    assert settings == student.settings and settings != student.model.settings
    if student.interpolator is not None:
        found = FrameInterpolator.load(tmp_path / "out" / "interpolator").state_dict()
        assert all(torch.equal(found[key], value) for key, value in student.interpolator.state_dict().items())


def _as_settings_are_written() -> None:
    before(writing, "write_settings", 1)


@each_format
@pytest.mark.parametrize("moment", [_as_settings_are_written, lambda: before_rename_to("out")], ids=["mid", "rename"])
def test_a_killed_write_leaves_the_old_folder_or_none(
    name: str, moment: Callable[[], None], base: Path, tmp_path: Path
) -> None:
    format, student = accepted(name, base)
    _, other = accepted(name, base, seed=1)
    path = tmp_path / "out"

    def killed(what: Student) -> int:
        def work() -> int:
            torch.set_num_threads(1)
            moment()
            write(format, path, what)
            return 0

        return in_a_fork(work)

    assert killed(student) == -signal.SIGKILL
    assert not path.exists()
    write(format, path, student)
    compare(format, path, student)
    assert killed(other) == -signal.SIGKILL
    write(format, path, other)
    compare(format, path, other)
    assert [part.name for part in tmp_path.iterdir()] == ["out"]


@each_format
def test_all_ranks_collect_the_same_tensors_once_each_and_one_writes(name: str, base: Path, tmp_path: Path) -> None:
    format, student = accepted(name, base)
    gathered: dict[bool, list[str]] = {}
    for main in (False, True):
        calls = gathered[main] = []

        def counted(kind: str, tensors: TensorStream, calls: list[str] = calls) -> TensorStream:
            def make(name: str) -> Tensor | None:
                calls.append(f"{kind} {name}")
                return tensors.make(name)

            return replace(tensors, make=make)

        adapter = counted("adapter", student.adapter) if student.adapter else None
        watched = replace(student, weights=counted("weights", student.weights), adapter=adapter)
        write(format, tmp_path / "out", watched, main=main)
        assert (tmp_path / "out").exists() == main
    assert gathered[True] == gathered[False] and len(set(gathered[True])) == len(gathered[True]) > 0


def test_an_unknown_format_is_refused_with_those_there_are() -> None:
    with pytest.raises(UserError, match=r"export format 'gguf' is not one of diffusers, lora, toy"):
        format_named("gguf")
