"""Rows to make reports of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from avd.report import Row


def _make_row(**changes: Any) -> Row:
    """A row of the world suite. What is no common field of rows is one of its measures."""
    fields: dict[str, Any] = {
        "name": "AVD, 4 steps",
        "steps": 4,
        "network_calls": 4,
        "seconds_per_video": 0.25,
        "videos": 16,
        "seed": 0,
        "recipe": {"objective": {"temporal": {"weight": 0.05}}},
        "code_version": "0.1.0",
        "machine": "x86_64, 2 cores",
    }
    scores: dict[str, Any] = {
        "saturation_error": 0.012,
        "saturation_signed": -0.004,
        "clipped_share": 0.001,
        "dynamic_degree": 0.75,
        "speed_ratio": 0.98,
        "instance_preservation": 0.9,
        "caption_accuracy": 0.8,
        "flicker": 0.0031,
    }
    common = {key: value for key, value in changes.items() if key in Row.model_fields}
    scores |= {key: value for key, value in changes.items() if key not in Row.model_fields}
    return Row(**({"scores": {"world": scores}} | fields | common))


@pytest.fixture
def make_row() -> Callable[..., Row]:
    return _make_row
