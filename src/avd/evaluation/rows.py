"""Rows: what was measured of one way of making videos, and all that is needed to measure it again.

`results.json` is `{"rows": [...], "meta": {...}}`. A measure that does not apply, such as the sampling time of rendered
clips, is null; NaN and infinity are refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, NonNegativeFloat, NonNegativeInt, ValidationError

from avd.files import write_text
from avd.types import UserError

Share = Annotated[FiniteFloat, Field(ge=0, le=1)]


class Row(BaseModel):
    """One line of a table of results. Shares lie in [0, 1]."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    name: str
    steps: NonNegativeInt
    """Sampling steps; 0 for rendered clips."""
    network_calls: NonNegativeInt
    """Calls of the denoising network for one video; two per step with guidance."""
    seconds_per_video: NonNegativeFloat | None
    saturation_error: NonNegativeFloat | None
    """Mean distance of the clips' saturation from that of rendered clips."""
    saturation_signed: FiniteFloat | None
    """The same with its sign: above 0 is too colourful, below 0 too grey."""
    clipped_share: Share | None
    """Share of pixels with a channel at the end of its range."""
    dynamic_degree: Share | None
    """Share of clips in which something moves."""
    speed_ratio: NonNegativeFloat | None
    """Measured speed over the speed it should be; 1 is right."""
    instance_preservation: Share | None
    """Share of clips in which every object stays whole, single and present."""
    caption_accuracy: Share | None
    """Share of the captions' promises that the clips keep."""
    flicker: NonNegativeFloat | None
    """Change between neighbouring frames that motion does not explain."""
    videos: NonNegativeInt
    """Videos measured."""
    seed: int
    recipe: dict[str, Any] | None
    code_version: str
    machine: str
    """Such as "x86_64, 2 cores"."""
    diversity: dict[str, FiniteFloat | None] | None = None
    """Spread over seeds of what the captions leave open, by attribute such as "colour"."""


class Results(BaseModel):
    """All rows of a run, in the order they are shown, and what holds for all of them."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    rows: list[Row]
    meta: dict[str, Any] = {}


def read_results(path: Path) -> Results:
    """Read a `results.json`.

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
    """Write a `results.json` in one piece: a reader, or a crash, never sees half of it."""
    write_text(path, results.model_dump_json(indent=2) + "\n")
