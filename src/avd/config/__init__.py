"""Recipes: everything that decides a distillation run, as validated YAML."""

from __future__ import annotations

from avd.config.loading import load_recipe, shipped_recipes
from avd.config.recipe import (
    AdaptersRecipe,
    ComputeRecipe,
    DataRecipe,
    FakeScoreRecipe,
    LimitsRecipe,
    MonitorsRecipe,
    ObjectiveRecipe,
    OptimizerRecipe,
    Recipe,
    RolloutRecipe,
    StudentRecipe,
    TrackerName,
    TrainingRecipe,
)

__all__ = [
    "AdaptersRecipe",
    "ComputeRecipe",
    "DataRecipe",
    "FakeScoreRecipe",
    "LimitsRecipe",
    "MonitorsRecipe",
    "ObjectiveRecipe",
    "OptimizerRecipe",
    "Recipe",
    "RolloutRecipe",
    "StudentRecipe",
    "TrackerName",
    "TrainingRecipe",
    "load_recipe",
    "shipped_recipes",
]
