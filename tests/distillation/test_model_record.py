"""The commit that a run began with, taken up when it is resumed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from avd.distillation.model_record import record_model, recorded_model
from avd.models.folders import ModelSource
from avd.types import UserError
from helpers.tiny import tiny_model


@pytest.mark.parametrize("name", ["owner/model", "owner/model@main", "owner/model@abc123"])
def test_a_resumed_run_reads_the_commit_it_began_with(name: str, tmp_path: Path) -> None:
    assert recorded_model(tmp_path, name) == name
    model = tiny_model()
    model.source = ModelSource(name, Path("hub/snapshots/abc123"), {})
    record_model(tmp_path, model)
    assert recorded_model(tmp_path, name) == "owner/model@abc123"
    assert recorded_model(tmp_path, "other/model") == "other/model"


def test_other_models_are_their_names(tmp_path: Path) -> None:
    record_model(tmp_path, tiny_model())
    assert recorded_model(tmp_path, "wan-mini") == "wan-mini"
    (tmp_path / "model.json").write_text(json.dumps(["no record"]))
    with pytest.raises(UserError, match=r"the record of a run's model .*model\.json is damaged"):
        recorded_model(tmp_path, "wan-mini")
