"""What every section of a recipe has in common: it is frozen, finite, and knows all its keys."""

from __future__ import annotations

import yaml
from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    def to_yaml(self) -> str:
        """Every value, defaults included, as the loader reads it."""
        return yaml.safe_dump(self.model_dump(mode="json", by_alias=True), sort_keys=False)
