"""The miniature configurations whose numbers are watched: every shipped recipe for wan-mini, and ways to train them.

The golden test, `make golden` and `make same` share this list, so that a new recipe is watched from its first day.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from avd.config import load_recipe, shipped_recipes

SETTINGS = (
    "seed=0",
    "compute.device=cpu",
    "data.world_clips=8",
    "training.updates=6",
    "training.batch=2",
    "training.checkpoint_every=3",
    "training.keep_checkpoints=2",
    "training.sample_every=0",
    "monitors.every=0",
)
"""What every configuration changes of its recipe, so that it trains in seconds."""

VARIANTS = {
    "avd+adapters": ("avd", ("roles=adapters",)),
    "avd+microbatch": ("avd", ("compute.microbatch=1",)),
    "avd+microbatch+unshared": ("avd", ("compute.microbatch=1", "rollout.shared=false")),
    "avd+monitors": ("avd", ("monitors.every=3", "monitors.clips=2", "monitors.teacher_steps=2")),
    "avd-half-rate+adapters+microbatch": ("avd-half-rate", ("roles=adapters", "compute.microbatch=1")),
    "dmd+adapters": ("dmd", ("roles=adapters",)),
}
"""Name, recipe and changes of the configurations that train a recipe in another way than it says itself."""

NEEDED = {
    "dfd": ("objective.distribution_matching.from_scratch=true",),
    "dcm-detail": ("experts.high=wan-mini",),
    "phased-dmd-low": ("experts.high=wan-mini",),
}
"""What recipes that need an earlier run take in its place."""


@dataclass(frozen=True)
class Configuration:
    """A shipped recipe with changes, named `RECIPE` or `RECIPE+CHANGE`."""

    name: str
    recipe: str
    changes: tuple[str, ...] = ()

    def arguments(self, output: Path, *more: str) -> list[str]:
        """The command line after `avd`, with `more` changes, for a run in the folder `output`."""
        changes = [*SETTINGS, *self.changes, *more]
        return ["distill", self.recipe, "--output", str(output), *(f"--set={change}" for change in changes)]


def configurations() -> list[Configuration]:
    """All of them, by name."""
    recipes = [name for name in shipped_recipes() if load_recipe(name).model == "wan-mini"]
    found = [Configuration(name, name, NEEDED.get(name, ())) for name in recipes]
    found += [Configuration(name, recipe, changes) for name, (recipe, changes) in VARIANTS.items()]
    return sorted(found, key=lambda configuration: configuration.name)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl without `seconds`, which is wall time."""
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]
