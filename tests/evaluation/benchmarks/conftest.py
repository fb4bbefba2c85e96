"""Cut-down files of prompts."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.benchmarks import write_infos


@pytest.fixture
def infos(tmp_path: Path) -> Path:
    """A folder like site-packages with the files of both benchmarks."""
    return write_infos(tmp_path / "infos")
