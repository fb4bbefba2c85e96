"""A folder of the student's family, as its teacher's is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from avd.export.format import Student

if TYPE_CHECKING:
    from torch import Tensor

    from avd.models.family import TextToVideo


@dataclass(frozen=True)
class DiffusersFolder:
    """See `avd.export.format.Format`. An adapter is merged into the transformer."""

    name: str = "diffusers"
    help: str = "a complete model folder, for avd and for the model's own pipeline in diffusers"
    tolerance: float = 0.0

    def refusal(self, student: Student) -> str | None:
        return None

    def gather(self, student: Student) -> dict[str, Tensor]:
        return student.weights()

    def write(self, folder: Path, student: Student, weights: Mapping[str, Tensor]) -> None:
        student.model.save(folder, weights, **student.changes)

    def reload(self, folder: Path, model: TextToVideo) -> dict[str, Tensor]:
        return model.reload(folder)


FORMAT = DiffusersFolder()
