"""Students as a run has them at its end, without the run."""

from __future__ import annotations

from pathlib import Path

import torch

from avd.config import load_recipe
from avd.distillation.roles import Roles
from avd.distillation.starts import Starts
from avd.export.format import Student
from avd.methods.method import Method
from avd.models.family import load_model
from avd.models.interpolator import FrameInterpolator, InterpolatorConfig

CHANGES = {"student_timesteps": (1000, 900, 757, 522), "half_rate_stages": 2, "frames": 33}


def make_student(
    base: Path, *, adapters: bool, interpolator: bool = False, dtype: torch.dtype = torch.float32, seed: int = 0
) -> Student:
    """A student of the model in `base` that has moved away from it, at random."""
    model = load_model(str(base), dtype=dtype)
    changes = ["roles=adapters", "adapters.rank=4", "adapters.alpha=8"] if adapters else []
    recipe = load_recipe("avd", [*changes, f"compute.dtype={str(dtype).removeprefix('torch.')}"])
    method = Method.of(recipe)
    roles = Roles(Starts.alike(model, method), recipe, method)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in roles.average.network.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    between = FrameInterpolator(InterpolatorConfig(model.latent_shape()[0], widths=(8,))) if interpolator else None
    adapter = roles.adapter_stream() if adapters else None
    return Student(model, roles.average_stream(), adapter, CHANGES, between)
