"""Fixtures."""

from helpers.random_mini import folder, model

__all__ = ["folder", "model"]
