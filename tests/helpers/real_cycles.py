"""Real cycles of distillation, to hold plans against."""

from __future__ import annotations

import torch

from avd.config import Recipe, load_recipe
from avd.data import MemoryLatents
from avd.distillation.data import RunData
from avd.distillation.task import DistillTask
from avd.models.wan.model import VideoModel


def recipe_for(*overrides: str) -> Recipe:
    return load_recipe("avd", ["compute.device=cpu", "objective.temporal.truncation=never", *overrides])


def make_task(recipe: Recipe, model: VideoModel) -> DistillTask:
    """On as many random clips as a batch holds."""
    count = recipe.training.batch
    source = MemoryLatents(
        torch.randn(count, *model.latent_shape()), model.encode_prompts(["a"] * count), ["a"] * count
    )
    return DistillTask(recipe, model, RunData.encode(model, source), None)
