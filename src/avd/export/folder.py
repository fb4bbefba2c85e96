"""Open a student that was written before, to write it in another format."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from avd.export.format import Student
from avd.models.family import load_model
from avd.types import UserError


def open_student(name: str) -> Student:
    """The student in a folder, or in the folder of the run that wrote it, in float32 on the CPU.

    Raises UserError if there is none or it is damaged.
    """
    from avd.models.streams import stream  # here, as the command line lists formats without torch
    from avd.models.weights import MemoryWeights
    from avd.sampling.choose import load_interpolator

    inner = Path(name) / "student"
    folder = inner if inner.is_dir() else Path(name)
    if folder != inner and (folder / "checkpoints").is_dir():
        raise UserError(f"run {name} has not written its student yet: add --checkpoint latest, best, or a number")
    model = load_model(str(folder))
    if model.settings.student_timesteps is None:
        raise UserError(f"{name} is a many-step model: name a run of `avd distill`, or its student")
    source, weights, interpolator = model.source, stream(model.weights()), load_interpolator(model)
    if source is None or source.adapter is None:
        return Student(model, weights, interpolator=interpolator)
    base = load_model(source.name, transformer=source.transformer)
    adapter = stream(MemoryWeights(base.read_adapter(source.adapter.folder)))
    return Student(base, weights, adapter, asdict(model.settings), interpolator)
