"""Where a row comes from: the code and the machine."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import yaml

from avd import __version__
from avd.engine.run_folder import RECIPE_FILE


def code_version() -> str:
    """The package's version, and the commit where it runs from a checkout ("-dirty" with uncommitted changes)."""
    package = Path(__file__).parent
    command = ["git", "-C", str(package), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        commit = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return __version__
    return f"{__version__}+{commit}" if commit else __version__


def machine() -> str:
    """The processor, for example "x86_64, 2 cores"."""
    return f"{platform.machine()}, {os.cpu_count()} cores"


def recipe_of(name: str) -> dict[str, Any] | None:
    """The recipe of the run whose folder holds the student, if there is one."""
    path = Path(name).parent / RECIPE_FILE
    return yaml.safe_load(path.read_text()) if Path(name).is_dir() and path.exists() else None
