"""A suite of one file, put where suites are looked for."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from avd.evaluation import suites

TOY = '''
"""How bright clips are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from avd.evaluation.suite import Format, Measure, Prompt, Scores, share
from avd.types import UserError


@dataclass(frozen=True)
class Toy:
    words: int = 3

    name: ClassVar[str] = "toy"
    measures: ClassVar = (
        share("brightness", "Brightness", "as you like", "Mean of all pixels."),
        Measure("clips", "Clips", "many", "How many there were.", Format(), detail=True),
    )

    def unavailable(self):
        return None if self.words else "it has no words: set words=1"

    def prompts(self):
        return [Prompt(f"word {i}", repeat) for i in range(self.words) for repeat in range(2)]

    def refusal(self, shape, prompt):
        return None if shape.frames > 1 else f"{shape}: a clip needs 2 frames"

    def score(self, clips):
        means = [float(clip.read().frames.mean()) / 255 for clip in clips]
        if not means:
            raise UserError("there are no clips to judge: give at least one")
        return Scores({"brightness": sum(means) / len(means), "clips": float(len(means))}, len(means))


SUITE = Toy
'''


@pytest.fixture(scope="module")
def toy_suite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The name of a suite that is there for a module's tests."""
    folder: Path = tmp_path_factory.mktemp("suites")
    (folder / "toy.py").write_text(TOY)
    importlib.invalidate_caches()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(suites, "__path__", [*suites.__path__, str(folder)])
        yield "toy"
    sys.modules.pop("avd.evaluation.suites.toy", None)
