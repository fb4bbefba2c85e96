"""The contract of an export format: writing a student as files, and reading them back as the tool they are for does.

A format is one file in this folder whose module-level `FORMAT` fills `Format`; a file that is put here is found, and
nothing else names it. How the student is sampled is written beside every format (`avd.export.writing`), so a format
writes weights and what its tool needs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:  # listing the formats loads no torch
    from torch import Tensor

    from avd.models.family import TextToVideo
    from avd.models.interpolator import FrameInterpolator
    from avd.models.settings import Settings
    from avd.models.streams import TensorStream


@dataclass(frozen=True)
class Student:
    """A distilled student: the weights that are exported, and how it is sampled."""

    model: TextToVideo
    """What it is a student of; everything but the transformer's weights is this model's."""
    weights: TensorStream
    """The transformer's full state dict, adapters merged, in the names of the model's own transformer. Shards are
    collected from all ranks as they are reached, so all must walk it."""
    adapter: TensorStream | None = None
    """The adapter by itself, as `models.adapters.adapter_stream` gives it; None if the student has none."""
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Settings in which it differs from the model: its timesteps, half-rate stages and transition."""
    interpolator: FrameInterpolator | None = None

    @property
    def settings(self) -> Settings:
        return replace(self.model.settings, **self.changes)


@runtime_checkable
class Format(Protocol):
    """One way to write a student."""

    name: str
    """What users call it."""
    help: str
    """What it is and who reads it, in a line."""
    tolerance: float
    """How far a tensor that is read back may lie from the student's, in units in the last place of its largest value;
    0 for a format that keeps every bit."""

    def refusal(self, student: Student) -> str | None:
        """Why this student cannot be written so, in one line that says what to do; None if it can. All ranks agree."""
        ...

    def tensors(self, student: Student) -> TensorStream:
        """Which of the student's weights `write` needs."""
        ...

    def write(self, folder: Path, student: Student, tensors: TensorStream) -> None:
        """Write into an empty folder, on the main rank alone, while the others drain what `tensors` gave."""
        ...

    def reload(self, folder: Path, model: TextToVideo) -> dict[str, Tensor]:
        """The full state dict of the transformer, in the names of `model`'s own, as stock code of the tool that the
        format is for reads the folder. `model` is the student's; it tells what the files do not, such as a LoRA's base.
        """
        ...
