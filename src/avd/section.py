"""The base of every section of a recipe: named values, validated, and nothing besides."""

from __future__ import annotations

from typing import Annotated

import yaml
from pydantic import BaseModel, ConfigDict, Field

Beta = Annotated[float, Field(ge=0, lt=1)]


class Section(BaseModel):
    """Unknown keys are refused, and numbers must be finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    def to_yaml(self) -> str:
        """Every value, defaults included, as the loader reads it."""
        return yaml.safe_dump(self.model_dump(mode="json", by_alias=True), sort_keys=False)
