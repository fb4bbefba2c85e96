"""What a model folder does not say by itself: its clips, and how it is sampled."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from avd.types import UserError

SETTINGS_FILE = "avd.json"
SolverName = Literal["euler", "unipc"]
"""Solvers of a many-step model: Euler on Wan's own uniform grid, or UniPC, the scheduler that Wan ships with."""


@dataclass(frozen=True)
class Settings:
    """Clip geometry, and how a many-step model or a student is sampled.

    Read from `avd.json` in the folder. Without that file they are what the folder's own pipeline implies.
    """

    frames: int = 81
    height: int = 480
    width: int = 832
    fps: int = 16
    steps: int = 50
    guidance: float = 5.0
    shift: float = 5.0
    student_timesteps: tuple[float, ...] | None = None
    """Set for a distilled model: it is sampled with the few-step rollout at these timesteps."""
    half_rate_stages: int = 0
    solver: SolverName = "euler"


WAN22_TI2V = Settings(frames=121, height=704, width=1280, fps=24)
"""Of Wan2.2-TI2V-5B; the defaults are Wan2.1-T2V's."""


def read_settings(folder: Path, index: Mapping[str, Any]) -> Settings:
    """Settings of the model folder whose `model_index.json` holds `index`."""
    path = folder / SETTINGS_FILE
    if not path.exists():
        return _implied(folder, index)
    try:
        values = json.loads(path.read_text())
        if values.get("student_timesteps") is not None:
            values["student_timesteps"] = tuple(values["student_timesteps"])
        settings = Settings(**values)
        if settings.solver not in get_args(SolverName):
            raise ValueError(f"solver is {settings.solver!r}")
        return settings
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is no settings file of avd ({error}): write the model folder again") from error


def _implied(folder: Path, index: Mapping[str, Any]) -> Settings:
    """Settings of a folder from elsewhere: solver and shift of its scheduler, clips of its family.

    A pipeline that expands timesteps is Wan2.2-TI2V's; others are taken for Wan2.1's.
    """
    path = folder / "scheduler" / "scheduler_config.json"
    scheduler = json.loads(path.read_text()) if path.exists() else {}
    settings = WAN22_TI2V if index.get("expand_timesteps") else Settings()
    if scheduler.get("_class_name") == "UniPCMultistepScheduler":
        return replace(settings, solver="unipc", shift=scheduler["flow_shift"])
    return replace(settings, shift=scheduler.get("shift", settings.shift))
