"""What a model folder does not say by itself: its clips, and how it is sampled."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from avd.files import read_text, write_json
from avd.types import Transition, UserError

SETTINGS_FILE = "avd.json"
SolverName = Literal["euler", "unipc"]
"""Solvers of a many-step model: Euler on a uniform grid, or UniPC."""


@dataclass(frozen=True)
class Settings:
    """Clip geometry, and how a many-step model or a student is sampled.

    Read from `avd.json` in the folder. Without that file they are what the folder's own pipeline implies.
    """

    frames: int = 81
    height: int = 480
    width: int = 832
    fps: float = 16
    steps: int = 50
    guidance: float = 5.0
    shift: float = 5.0
    student_timesteps: tuple[float, ...] | None = None
    """Set for a distilled model: it is sampled with the few-step rollout at these timesteps."""
    half_rate_stages: int = 0
    half_resolution_stages: int = 0
    transition: Transition = "renoise"
    """How a distilled model goes from a timestep to the next."""
    high_stages: int = 0
    """For a student of two experts: the first network runs so many stages, the second the others. 0: one network."""
    end_timestep: float = 0.0
    """Where its last stage ends: above 0 for an expert of high noise by itself, whose result is no clean video."""
    solver: SolverName = "euler"
    negative_prompt: str = ""
    """What guidance leads away from, in training and sampling alike; empty: the null prompt."""

    @property
    def boundary(self) -> float | None:
        """A noise level between the stages of a student's two experts; None for one network."""
        if not self.high_stages:
            return None
        assert self.student_timesteps is not None
        from avd.flow import TIMESTEPS  # here, as the command line reads `SolverName` without torch

        last, first = self.student_timesteps[self.high_stages - 1 : self.high_stages + 1]
        return (last + first) / 2 / TIMESTEPS


_LARGEST = {"frames": 100_000, "height": 100_000, "width": 100_000, "steps": 100_000}


def read_settings(folder: Path, name: str = SETTINGS_FILE) -> Settings | None:
    """The settings in a model folder, or in another file of a folder; None if it has none of its own.

    Raises UserError, in one line, for what cannot be settings: unknown keys, sizes that are no positive whole numbers,
    timesteps that do not fall.
    """
    path = folder / name
    if not path.exists():
        return None
    try:
        values = json.loads(read_text(path))
        if not isinstance(values, dict):
            raise ValueError("it is not a JSON object")
        return _checked(values)
    except ValueError as error:
        raise UserError(f"{path} is not an avd settings file ({error}): write the model folder again") from error


def write_settings(folder: Path, settings: Settings, name: str = SETTINGS_FILE) -> None:
    write_json(folder / name, asdict(settings))


def is_count(value: object, least: int, most: int) -> bool:
    """Whether it is a whole number from `least` to `most`; JSON's true and false are none."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def is_number(value: object) -> bool:
    """Whether it is a finite number; an integer past all floats, as JSON may hold, is none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _checked(values: Mapping[str, Any]) -> Settings:
    """Raises ValueError naming the first value that cannot be."""
    unknown = values.keys() - {field.name for field in fields(Settings)}
    if unknown:
        raise ValueError(f"it has the unknown key {min(unknown)!r}")
    for key, most in _LARGEST.items():
        if key in values and not is_count(values[key], 1, most):
            raise ValueError(f"{key} is {values[key]!r}, not a whole number from 1 to {most:,}")
    for key in ("fps", "shift"):
        if key in values and not (is_number(values[key]) and 0 < values[key] <= 1000):
            raise ValueError(f"{key} is {values[key]!r}, not a number above 0 and at most 1,000")
    if "guidance" in values and not is_number(values["guidance"]):
        raise ValueError(f"guidance is {values['guidance']!r}, not a number")
    timesteps = values.get("student_timesteps")
    if timesteps is not None:
        if not isinstance(timesteps, list) or not all(is_number(timestep) for timestep in timesteps):
            raise ValueError(f"student_timesteps is {timesteps!r}, not a list of numbers")
        from avd.flow import few_step_sigmas  # here, as the command line reads `SolverName` without torch

        few_step_sigmas(tuple(timesteps))
    most = 0 if timesteps is None else len(timesteps) - 1
    for key in ("half_rate_stages", "half_resolution_stages"):
        stages = values.get(key, 0)
        if not is_count(stages, 0, most):
            raise ValueError(f"{key} is {stages!r}, not a whole number from 0 to {most}")
        if stages and values.get("transition") == "euler":
            raise ValueError(f"{key} is {stages} with Euler steps, which are for stages at full rate and resolution")
    for key, known in (("transition", get_args(Transition)), ("solver", get_args(SolverName))):
        if key in values and values[key] not in known:
            raise ValueError(f"{key} is {values[key]!r}, not {' or '.join(known)}")
    if not is_count(values.get("high_stages", 0), 0, most):
        raise ValueError(f"high_stages is {values['high_stages']!r}, not a whole number from 0 to {most}")
    if values.get("high_stages") and values.get("transition", "renoise") != "euler":
        raise ValueError(f"high_stages is {values['high_stages']} without Euler steps, which two experts take")
    end, lowest = values.get("end_timestep", 0), 1 if timesteps is None else timesteps[-1]
    if not (is_number(end) and 0 <= end < lowest):
        raise ValueError(f"end_timestep is {end!r}, not a number from 0 to below {lowest:g}")
    if end and values.get("high_stages"):
        raise ValueError(f"end_timestep is {end!r} with both experts, which end at 0")
    if not isinstance(values.get("negative_prompt", ""), str):
        raise ValueError(f"negative_prompt is {values['negative_prompt']!r}, not a text")
    return Settings(**{**values, "student_timesteps": None if timesteps is None else tuple(timesteps)})
