"""An export format of one file, put where formats are looked for."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import avd.export

TOY = '''
"""The transformer's tensors as numpy writes them."""

from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class Toy:
    name: str = "toy"
    help: str = "arrays for numpy"
    tolerance: float = 0.0

    def refusal(self, student):
        return "it has an interpolator: leave it out" if student.interpolator is not None else None

    def tensors(self, student):
        return student.weights

    def write(self, folder, student, tensors):
        np.savez(folder / "weights.npz", **{name: tensor.float().numpy() for name, tensor in tensors})

    def reload(self, folder, model):
        return {name: torch.from_numpy(array) for name, array in np.load(folder / "weights.npz").items()}


FORMAT = Toy()
'''


@pytest.fixture(scope="module")
def toy_format(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The format `toy` is there for a module's tests."""
    folder: Path = tmp_path_factory.mktemp("formats")
    (folder / "toy.py").write_text(TOY)
    importlib.invalidate_caches()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(avd.export, "__path__", [*avd.export.__path__, str(folder)])
        yield
    sys.modules.pop("avd.export.toy", None)
