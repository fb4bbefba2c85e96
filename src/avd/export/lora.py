"""The student's adapter by itself, beside the name of the model that it is an adapter of."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from avd.export.format import Student
from avd.models.folders import AdapterFolder

if TYPE_CHECKING:
    from torch import Tensor

    from avd.models.family import TextToVideo
    from avd.models.streams import TensorStream


@dataclass(frozen=True)
class Lora:
    """See `avd.export.format.Format`. alpha / rank is multiplied into the second matrices."""

    name: str = "lora"
    help: str = "a LoRA of the model that the student was distilled from, for avd and for diffusers' load_lora_weights"
    tolerance: float = 8.0
    """The product of the matrices is rounded by whoever multiplies them."""

    def refusal(self, student: Student) -> str | None:
        source = student.model.source
        if student.adapter is None:
            return "the student was trained without adapters: write it as diffusers, or distil with roles=adapters"
        if source is None:
            return "its base was made in memory, and a LoRA needs one that can be loaded: save the base first"
        if source.adapter is not None:
            return f"its base {source.adapter.folder} is itself a LoRA: write it as diffusers (adapters.merge=true)"
        return None

    def tensors(self, student: Student) -> TensorStream:
        assert student.adapter is not None
        return student.adapter

    def write(self, folder: Path, student: Student, tensors: TensorStream) -> None:
        source = student.model.source
        assert source is not None
        student.model.save_adapter(folder, tensors)
        AdapterFolder(folder, source.pinned, source.transformer).write()

    def reload(self, folder: Path, model: TextToVideo) -> dict[str, Tensor]:
        return model.reload_adapter(folder)


FORMAT = Lora()
