"""The commit of a hub's model that a run began with, which a recipe with a branch or no revision leaves open."""

from __future__ import annotations

from pathlib import Path

from avd.files import read_json, write_json
from avd.models.family import TextToVideo
from avd.models.folders import hub_id_of

_FILE = "model.json"


def recorded_model(folder: Path, name: str) -> str:
    """The model of a recipe as the run in `folder` began with it, whatever the hub has by now; of a run that recorded
    none, and of any other model, the name itself. Raises UserError for a damaged record."""
    if not (folder / _FILE).exists():
        return name
    found = read_json(folder / _FILE, "the record of a run's model", "name another output folder").get("model")
    return found if isinstance(found, str) and hub_id_of(found) == hub_id_of(name) else name


def record_model(folder: Path, model: TextToVideo) -> None:
    """Write down in a run's folder what its model is."""
    write_json(folder / _FILE, {"model": None if model.source is None else model.source.pinned})
