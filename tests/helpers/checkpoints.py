"""A checkpoint of one process, written while the test waits."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from avd.engine.checkpoint import copy_pieces, publish, write_pieces
from avd.files import clear_unfinished


def save_checkpoint(
    folder: Path, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any], keep: int
) -> None:
    """Write checkpoint `step` under `folder` and remove all but the newest `keep`."""
    clear_unfinished(folder)
    write_pieces(folder, step, copy_pieces(tensors, first=True))
    publish(folder, step, state, keep)
