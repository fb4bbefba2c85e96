"""Suites of one file each, put where suites are looked for: a toy, and the example of docs/adding-a-suite.md."""

from __future__ import annotations

import importlib
import re
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

from avd.evaluation.suite import NumberFormat, Measure, Prompt, Scores, share


@dataclass(frozen=True)
class Toy:
    words: int = 3

    name: ClassVar[str] = "toy"
    measures: ClassVar = (
        share("brightness", "Brightness", "as you like", "Mean of all pixels."),
        Measure("clips", "Clips", "many", "How many there were.", NumberFormat(), detail=True),
    )

    def unavailable(self):
        return None if self.words else "it has no words: set words=1"

    def prompts(self):
        return [Prompt(f"word {i}", repeat) for i in range(self.words) for repeat in range(2)]

    def refusal(self, shape, prompt):
        return None if shape.frames > 1 else f"{shape}: a clip needs 2 frames"

    def measure(self, video, prompt):
        return {"brightness": float(video.frames.mean()) / 255}

    def prompt_values(self, records):
        return {}

    def summarise(self, records):
        means = [record.values["brightness"] for record in records]
        return Scores({"brightness": sum(means) / len(means), "clips": float(len(means))}, len(means))


SUITE = Toy
'''


PAGE = Path(__file__).parents[2] / "docs" / "adding-a-suite.md"
ADDED = ("brightness", "toy")


@pytest.fixture(scope="module")
def added_suites(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The suites `ADDED` are there for a module's tests."""
    (example,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    folder: Path = tmp_path_factory.mktemp("suites")
    (folder / "toy.py").write_text(TOY)
    (folder / "brightness.py").write_text(example)
    importlib.invalidate_caches()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(suites, "__path__", [*suites.__path__, str(folder)])
        yield
    for name in ADDED:
        sys.modules.pop(f"avd.evaluation.suites.{name}", None)
