"""A tiny model on disk, and a recipe that distils it in a second."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.tiny import tiny_interpolator, tiny_model

RECIPE = """\
extends: avd
name: small
model: tiny
data: {world_clips: 4}
training: {updates: 2, batch: 2, checkpoint_every: 1, sample_every: 4}
"""


@pytest.fixture(autouse=True, scope="module")
def in_one_thread(one_thread: None) -> None:
    """Every module of the command line."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The working directory of a module's tests: the model `tiny` with its interpolator, and `small.yaml`."""
    folder = tmp_path_factory.mktemp("place")
    tiny_model().save(folder / "tiny")
    tiny_interpolator().save(folder / "tiny" / "interpolator")
    (folder / "small.yaml").write_text(RECIPE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder
