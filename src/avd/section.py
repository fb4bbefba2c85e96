"""The base of every section of a recipe: named values, validated, and nothing besides."""

from __future__ import annotations

from typing import Annotated

import yaml
from pydantic import BaseModel, ConfigDict, Field

Beta = Annotated[float, Field(ge=0, lt=1)]

# What no run can need: past these bounds a value is a slip of the keyboard, and some would hang or run out of memory.
MOST_CLIPS = 65_536
"""Clips of a batch, in memory at once."""
MOST_UPDATES = 1_000_000_000
MOST_RANKS = 65_536
MOST_SEED = 2**63 - 1
MOST_WEIGHT = 1e6
"""Weight of a term of the loss; past this, float32 keeps little of the other terms."""
MOST_WORLD_CLIPS = 1_000_000
"""Clips of the built-in world that are encoded before a run and held in memory."""


class Section(BaseModel):
    """Unknown keys are refused, and numbers must be finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    def to_yaml(self) -> str:
        """Every value, defaults included, as the loader reads it."""
        return yaml.safe_dump(self.model_dump(mode="json", by_alias=True), sort_keys=False)
