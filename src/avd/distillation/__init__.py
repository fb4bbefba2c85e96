"""Distillation: from a recipe to a run, its task and its training step."""
