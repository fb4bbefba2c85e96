"""The families that contracts are checked on: Wan, and a fake one that is put where families are looked for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import avd.models
from helpers.tiny import tiny_model

HELPERS = Path(__file__).parent
FAMILIES = ("wan", "fake")


@pytest.fixture(scope="module")
def fake_family() -> Iterator[None]:
    """A family is a sub-package of `avd.models`, wherever its folder lies."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(avd.models, "__path__", [*avd.models.__path__, str(HELPERS)])
        yield


def save_model(family: str, folder: Path) -> None:
    """A small model of a family; the fake one needs the fixture `fake_family`."""
    if family == "wan":
        tiny_model().save(folder)
    else:
        from avd.models.fake_family.model import fake_model  # type: ignore[import-not-found]

        fake_model().save(folder)
