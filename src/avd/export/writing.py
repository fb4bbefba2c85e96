"""Write a student in a format, with how it is sampled, and compare what stock code reads of it with the student."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from avd.export.format import Format, Student
from avd.files import atomic_folder
from avd.models.settings import write_settings
from avd.types import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from avd.models.streams import TensorStream


@dataclass(frozen=True)
class Deviation:
    """The largest difference between a student and what was read back, in units in the last place of the largest
    value of its `tensor`, in the coarser of the two dtypes."""

    tensor: str
    ulps: float


def write(format: Format, path: Path, student: Student, *, main: bool = True, verify: bool = False) -> None:
    """Write the folder `path`, replacing it as a unit: killed at any moment, it is the old one or the new one.

    All ranks call it, as weights are collected from all, one tensor at a time; the one that is `main` writes. Settings
    (`avd.json`) and the interpolator (`interpolator/`) are in the folder of every format. `verify` reads the files back
    with stock code before they take their place. Raises UserError if the format refuses the student, or if what is read
    back differs.
    """
    refusal = format.refusal(student)
    if refusal is not None:
        raise UserError(f"the student cannot be written as {format.name}: {refusal}")
    tensors = format.tensors(student)
    if not main:
        tensors.drain()
        return
    with atomic_folder(path) as folder:
        _write(format, folder, student, tensors)
        write_settings(folder, student.settings)
        if student.interpolator is not None:
            student.interpolator.save(folder / "interpolator")
        if verify:
            compare(format, folder, student)


def _write(format: Format, folder: Path, student: Student, tensors: TensorStream) -> None:
    """Write, and, if that fails, let the other ranks come to the end of what they are asked for."""
    waiting = dict.fromkeys(tensors.shapes)

    def make(name: str) -> Tensor | None:
        waiting.pop(name, None)
        return tensors.make(name)

    try:
        format.write(folder, student, replace(tensors, make=make))
    except Exception:
        for name in waiting:
            tensors.make(name)
        raise


def compare(format: Format, folder: Path, student: Student) -> Deviation:
    """How far what stock code reads in `folder` lies from the student, at most. For one process.

    Raises UserError if tensors are missing, too many or of another shape, or lie further away than the format's
    tolerance, or are not finite where the student's are.
    """
    expected, found = student.weights, format.reload(folder, student.model)
    for name in sorted(expected.shapes.keys() ^ found.keys()):
        missing = name in expected.shapes
        raise UserError(f"{_differs(format)}: {name} is {'missing' if missing else 'not in the student'}")
    worst = Deviation(min(found), 0.0)
    for name, tensor in expected:
        if found[name].shape != tensor.shape:
            shapes = f"{tuple(found[name].shape)}, not {tuple(tensor.shape)}"
            raise UserError(f"{_differs(format)}: {name} is of shape {shapes}")
        ulps = _ulps(found[name], tensor)
        if not ulps <= format.tolerance:  # nan too
            raise UserError(
                f"{_differs(format)}: {name} is off by {ulps:.3g} units in the last place, over {format.tolerance:g}"
            )
        worst = max(worst, Deviation(name, ulps), key=lambda each: each.ulps)
    return worst


def _differs(format: Format) -> str:
    return f"the student read back from {format.name} differs from the one that was written"


def _ulps(found: Tensor, expected: Tensor) -> float:
    import torch  # here, as the command line lists formats without torch

    if torch.equal(found, expected) or expected.numel() == 0:
        return 0.0
    unit = max(torch.finfo(tensor.dtype).eps for tensor in (found, expected))
    a, b = found.double(), expected.double()
    return ((a - b).abs().max() / (b.abs().max() * unit)).item()
