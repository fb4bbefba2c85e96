"""Recipes: everything that decides a run, of distillation or of `avd train`, as validated YAML."""

from __future__ import annotations

from avd.config.ablation import AblationRecipe, RowRecipe
from avd.config.loading import COMMANDS, about, load, load_recipe, shipped_recipes
from avd.config.miniature import InterpolatorRecipe, TeacherRecipe, VAERecipe
from avd.config.recipe import (
    AdaptersRecipe,
    ComputeRecipe,
    DataRecipe,
    DiscriminatorRecipe,
    FakeScoreRecipe,
    LimitsRecipe,
    MonitorsRecipe,
    ObjectiveRecipe,
    OptimizerRecipe,
    Recipe,
    StudentRecipe,
    TrackerName,
    TrainingRecipe,
)
from avd.config.rollout import RolloutRecipe

__all__ = [
    "COMMANDS",
    "AblationRecipe",
    "AdaptersRecipe",
    "ComputeRecipe",
    "DataRecipe",
    "DiscriminatorRecipe",
    "FakeScoreRecipe",
    "InterpolatorRecipe",
    "LimitsRecipe",
    "MonitorsRecipe",
    "ObjectiveRecipe",
    "OptimizerRecipe",
    "Recipe",
    "RolloutRecipe",
    "RowRecipe",
    "StudentRecipe",
    "TeacherRecipe",
    "TrackerName",
    "TrainingRecipe",
    "VAERecipe",
    "about",
    "load",
    "load_recipe",
    "shipped_recipes",
]
