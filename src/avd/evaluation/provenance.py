"""Where a row comes from: the code and the machine."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

from avd import __version__


def code_version() -> str:
    """The package's version, and the commit where it runs from a checkout ("-dirty" with uncommitted changes)."""
    here = Path(__file__).parent
    command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        commit = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return __version__
    return f"{__version__}+{commit}" if commit else __version__


def machine() -> str:
    """Such as "x86_64, 2 cores"."""
    return f"{platform.machine()}, {os.cpu_count()} cores"
