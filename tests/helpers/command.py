"""The command line, run in the test's own process."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import pytest

from avd.cli.main import main


def avd(*arguments: object) -> int:
    """The exit code of `avd ARGUMENTS`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["avd", *map(str, arguments)])
        try:
            main()
        except SystemExit as end:
            assert isinstance(end.code, int | None)
            return end.code or 0
    raise AssertionError("the command line ends by SystemExit")


def snapshot(folder: Path) -> dict[str, str]:
    """Everything under `folder` with a digest of its bytes."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "/"
        for path in sorted(folder.rglob("*"))
    }
