"""A student in fewer bits than it was trained in, and how much of what it learnt that costs.

With w the student's weights, w0 those it was distilled from, and r(w) the rounded ones, over all tensors together

    loss = |r(w) - w| / |w - w0|

A small learning rate moves a weight by less than a step of bfloat16, so rounding may undo it altogether: at a loss of 1
and more, what was learnt is lost in it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from avd.export.format import Student

if TYPE_CHECKING:
    import torch

    from avd.models.weights import Weights


def rounded(student: Student, dtype: torch.dtype) -> Student:
    """The student with its weights in `dtype`, but for those that its family keeps in float32. A LoRA by itself is
    small and stays as it is."""
    precise = student.model.hollow_velocity().float32_names
    return replace(student, weights=replace(student.weights, dtype=dtype, precise=precise))


def rounding_loss(student: Student, origin: Weights, dtype: torch.dtype) -> float | None:
    """The loss above, of rounding a student that was distilled from `origin`; None if it is what that is.

    For one process. One tensor is in memory at a time.
    """
    from avd.models.weights import read_tensor  # here, as the command line lists formats without torch

    fewer = rounded(student, dtype).weights
    error = learnt = 0.0
    for name, tensor in student.weights:
        before = read_tensor(origin, name).double()
        error += (tensor.to(fewer.dtype_of(name)).double() - tensor.double()).square().sum().item()
        learnt += (tensor.double() - before).square().sum().item()
    return (error / learnt) ** 0.5 if learnt else None
