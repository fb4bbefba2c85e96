"""The official package of a benchmark, in a Python of its own: its pins conflict with those of this project."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from avd.evaluation.benchmarks.official_runner import MARK
from avd.evaluation.benchmarks.scoring import Scoring
from avd.types import UserError

RUNNER = Path(__file__).with_name("official_runner.py")
_LAUNCH = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")
"""Variables of a launch of several processes, which the official code would take for its own."""


@dataclass(frozen=True)
class OfficialPackage:
    """What was found in the Python that the user names."""

    python: Path
    folder: Path
    """The package's folder."""
    label: str
    """The package, its version, and the start of the digest of its code: rows are compared by it."""
    code: str
    """The digest of its code."""
    devices: tuple[str, ...]
    """Values of CUDA_VISIBLE_DEVICES, one for each GPU; empty where there is none."""


def find_package(scoring: Scoring, python: Path | None) -> OfficialPackage:
    """The official package of `python`. Raises UserError, with the commands that install it, if it is not there."""
    name, title = scoring.benchmark.name, scoring.benchmark.title
    advice = f"make one with `{scoring.install}` and name it with --vbench-python (docs/vbench.md)"
    if python is None:
        raise UserError(f"{title} is judged by its official code, in a Python of its own: {advice}")
    if not os.access(python, os.X_OK) or python.is_dir():
        raise UserError(f"--vbench-python {python} is no program: {advice}")
    # Absolute and not resolved: the Python of a virtual environment is a link, and knows by its name where it is.
    python = python.absolute()
    command = [str(python), str(RUNNER), "describe", name]
    environment = official_environment(os.environ)
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, encoding="utf-8", errors="replace", check=False
        )
    except OSError as error:
        raise UserError(f"--vbench-python {python} cannot be run ({error.strerror}): {advice}") from error
    if done.returncode:
        raise UserError(f"{python} cannot import {name} ({last_line(done.stderr)}): {advice}")
    described = [line.removeprefix(MARK) for line in done.stdout.splitlines() if line.startswith(MARK)]
    if not described:
        raise UserError(f"--vbench-python {python} is no Python, for it does not run a script: {advice}")
    found = json.loads(described[-1])
    label = f"{name} {found['version'] or 'of a checkout'}, code {found['code'][:12]}"
    devices = _devices(os.environ.get("CUDA_VISIBLE_DEVICES"), found["gpus"])
    return OfficialPackage(python, Path(found["folder"]), label, found["code"], devices)


def official_environment(environment: Mapping[str, str], device: str | None = None) -> dict[str, str]:
    """The environment of official code: one process, which sees one GPU, or with None what this process sees."""
    own = {key: value for key, value in environment.items() if key not in _LAUNCH}
    return own if device is None else own | {"CUDA_VISIBLE_DEVICES": device}


def last_line(text: str) -> str:
    """The last line that is not blank, where a traceback says what was wrong."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it says nothing"


def _devices(visible: str | None, count: int) -> tuple[str, ...]:
    """Names of the GPUs that are seen: those that CUDA_VISIBLE_DEVICES lists, else their numbers."""
    listed = [name.strip() for name in visible.split(",")] if visible else [str(number) for number in range(count)]
    return tuple(listed[:count])
