"""Rows: what was measured of one way of making videos, and all that is needed to measure it again.

`results.json` is `{"rows": [...], "meta": {...}}`. A measure that does not apply, such as the sampling time of rendered
clips, is null; NaN and infinity are refused. Files from before there were suites are read: their rows hold the world
suite's measures as fields of their own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import (
    BaseModel,
    ConfigDict,
    FiniteFloat,
    NonNegativeFloat,
    NonNegativeInt,
    ValidationError,
    field_validator,
    model_validator,
)

from avd.evaluation.suites import declared_measures
from avd.files import write_atomically
from avd.types import UserError

_WORLD = "world"
"""The only suite that there was when a row's measures were its fields."""
_DIVERSITY = "diversity"


class Overlap(BaseModel):
    """How many of a suite's prompts a model was trained on."""

    model_config = ConfigDict(extra="forbid")

    prompts: NonNegativeInt
    """Different prompts of the suite."""
    shared: NonNegativeInt
    """Those that training data hold too, as far as they could be read."""
    example: str | None
    unread: list[str]
    """Why some training data could not be compared, a line each."""


class Teacher(BaseModel):
    """A many-step model, and which weights it had."""

    model_config = ConfigDict(extra="forbid")

    model: str
    """Its name or folder."""
    transformer: str | None = None
    """The file that its transformer's weights were taken from, if another."""
    identity: str
    """A hash over the first values of each weight."""


class Training(BaseModel):
    """What a student has cost."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    updates: NonNegativeInt
    """Those of the student in its last run."""
    forwards: NonNegativeFloat
    """Network forwards per clip of a batch, times the updates, with those of the runs that it began with."""
    seconds: NonNegativeFloat
    """Wall time of the updates, on the row's machine, with those of these runs."""
    seconds_per_update: NonNegativeFloat
    """The median over updates of its last run: a machine that others use too is slow at times."""


class Row(BaseModel):
    """One line of a table of results."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    name: str
    steps: NonNegativeInt | None
    """Sampling steps; 0 for rendered clips, None where nobody recorded how videos were made."""
    network_calls: NonNegativeInt | None
    """Calls of the denoising network for one video; two per step with guidance. None as above."""
    seconds_per_video: NonNegativeFloat | None
    videos: NonNegativeInt
    """Videos measured."""
    seed: int
    scores: dict[str, dict[str, FiniteFloat | None]]
    """Values by measure, by suite: each suite's measures are those that it declares."""
    recipe: dict[str, Any] | None
    code_version: str
    machine: str
    """For example "x86_64, 2 cores"."""
    overlap: Overlap | None = None
    """With what the model's run was trained on; None where no run is known."""
    protocol: dict[str, Any] | None = None
    """How an official benchmark's numbers came about, by `evaluation/protocols.py`; None of other suites."""
    errors: dict[str, dict[str, NonNegativeFloat | None]] = {}
    """The standard error of values, by suite and measure, where one is known."""
    training: Training | None = None
    """What the student has cost; None where nobody recorded it."""
    teacher: Teacher | None = None
    """What the student was distilled from, or without a student what made the videos; None where it is not known."""
    numbers: int | None = None
    """`NUMBERS` of the code that measured, or of an older one that the student's training began with; None of before
    they were recorded."""

    @model_validator(mode="before")
    @classmethod
    def _move_old_fields(cls, data: Any) -> Any:
        """A row of before there were suites, as one with scores."""
        if not isinstance(data, dict) or "scores" in data:
            return data
        measures = declared_measures(_WORLD)
        values = {key: value for key, value in data.items() if key in measures}
        diversity = data.get(_DIVERSITY)
        if isinstance(diversity, dict):
            values |= {f"{_DIVERSITY}_{attribute}": value for attribute, value in diversity.items()}
        if not values:
            return data
        common = {key: value for key, value in data.items() if key not in measures and key != _DIVERSITY}
        return common | {"scores": {_WORLD: values}}

    @field_validator("scores")
    @classmethod
    def _check_scores(cls, scores: dict[str, dict[str, float | None]]) -> dict[str, dict[str, float | None]]:
        for suite, values in scores.items():
            measures = declared_measures(suite)
            for key, value in values.items():
                if key not in measures:
                    raise ValueError(f"suite {suite} has no measure {key}")
                if value is not None and not measures[key].allows(value):
                    raise ValueError(f"{key} of suite {suite} is {value}, which is out of its range")
        return scores

    def score(self, suite: str, measure: str) -> float | None:
        """The value of a suite's measure; None where the row has none."""
        return self.scores.get(suite, {}).get(measure)

    def error(self, suite: str, measure: str) -> float | None:
        """Its standard error; None where none is known."""
        return self.errors.get(suite, {}).get(measure)


class Results(BaseModel):
    """All rows of a run, in the order they are shown, and what holds for all of them."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    rows: list[Row]
    meta: dict[str, Any] = {}


def read_results(path: Path) -> Results:
    """Read a `results.json`, an old one too.

    Raises `UserError` when the file is missing or does not hold rows.
    """
    try:
        return Results.model_validate_json(path.read_bytes())
    except OSError as error:
        raise UserError(
            f"cannot read results from {path}: {error.strerror}; name a results.json that a run wrote"
        ) from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "top level"
        raise UserError(
            f"{path} does not hold results: {place}: {first['msg']}; write it again with the run"
        ) from error


def write_results(path: Path, results: Results) -> None:
    """Write a `results.json` atomically: a reader, or a crash, never sees half of it."""
    write_atomically(path, (results.model_dump_json(indent=2) + "\n").encode())
