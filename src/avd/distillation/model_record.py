"""What a run began with that its recipe names only by a place: the commit of a hub's model, and the weights of a frozen
expert of high noise, whose own run may continue."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from avd.files import read_json, write_json
from avd.models.family import TextToVideo
from avd.models.folders import hub_id_of
from avd.models.identity import entries_of, identity_of
from avd.models.weights import Weights
from avd.types import UserError

_FILE = "model.json"


def recorded_model(folder: Path, name: str) -> str:
    """The model of a recipe as the run in `folder` began with it, whatever the hub has by now; of a run that recorded
    none, and of any other model, the name itself. Raises UserError for a damaged record."""
    if not (folder / _FILE).exists():
        return name
    found = _read(folder).get("model")
    return found if isinstance(found, str) and hub_id_of(found) == hub_id_of(name) else name


def record_model(folder: Path, model: TextToVideo, high: Weights | None = None) -> None:
    """Write down in a run's folder what its model is, and the frozen expert `high` if it has one."""
    pinned = None if model.source is None else model.source.pinned
    write_json(folder / _FILE, {"model": pinned, "high_expert": None if high is None else _identity(high)})


def check_high_expert(folder: Path, name: str | None, high: Weights | None) -> None:
    """Raise UserError unless `high`, which a recipe calls `name`, is the expert that the run in `folder`, if it holds
    one, began with. A run of an earlier version recorded none."""
    recorded = _read(folder).get("high_expert") if (folder / _FILE).exists() else None
    if high is not None and recorded not in (None, _identity(high)):
        raise UserError(
            f"experts.high {name} has other weights than when the run {folder} began, as if its own run had continued: "
            "put those back, or begin again in another folder"
        )


def _read(folder: Path) -> dict[str, Any]:
    return read_json(folder / _FILE, "the record of a run's model", "name another output folder")


def _identity(weights: Weights) -> str:
    return identity_of("weights", entries_of(weights))
