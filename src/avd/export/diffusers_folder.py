"""A folder of the student's family, as its teacher's is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from avd.export.format import Student

if TYPE_CHECKING:
    from torch import Tensor

    from avd.models.family import TextToVideo
    from avd.models.streams import TensorStream


@dataclass(frozen=True)
class DiffusersFolder:
    """See `avd.export.format.Format`. An adapter is merged into the transformer."""

    name: str = "diffusers"
    help: str = "a complete model folder, for avd and for the model's own pipeline in diffusers"
    tolerance: float = 0.0

    def refusal(self, student: Student) -> str | None:
        return None

    def tensors(self, student: Student) -> TensorStream:
        return student.weights

    def write(self, folder: Path, student: Student, tensors: TensorStream) -> None:
        student.model.save(folder, tensors, **student.changes)

    def reload(self, folder: Path, model: TextToVideo) -> dict[str, Tensor]:
        return model.reload(folder)


FORMAT = DiffusersFolder()
