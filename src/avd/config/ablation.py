"""What `avd ablate` does: the rows of a table, how each is trained and sampled, and what is tuned before.

A row is trained by a recipe (`recipe`), or is sampled from the students of an earlier row's runs (`run`); a teacher's
row is sampled from the model that its recipe names. A method of two runs is two rows, the second of which names the
first (`starts`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from avd.section import MOST_SEED, MOST_UPDATES, Section

RowSampler = Literal["full", "half", "many", "cut"]


class KnobRecipe(Section):
    """The one value of a method that is tuned."""

    key: str
    """A dotted key of the recipe."""
    values: tuple[Any, ...] = Field(min_length=2, max_length=100)
    """What is tried. The first is what the recipe has without tuning."""

    @field_validator("values")
    @classmethod
    def _check_values(cls, values: tuple[Any, ...]) -> tuple[Any, ...]:
        again = [value for i, value in enumerate(values) if value in values[:i]]
        if again:
            raise ValueError(f"{again[0]} stands there twice: every trial needs another value")
        return values


class PublishedRow(Section):
    """What the paper has of a row. Shares are in [0, 1]."""

    name: str
    instance_preservation: float | None = Field(None, ge=0, le=1)
    """VBench-2.0's dimension."""
    dynamic_degree: float | None = Field(None, ge=0, le=1)
    """VBench's dimension."""
    vbench2: float | None = None
    """Total of VBench-2.0, at most 100."""
    vbench: float | None = None
    """Total of VBench, at most 100."""


class RowRecipe(Section):
    name: str
    recipe: str | None = None
    """By name or file."""
    changes: tuple[str, ...] = ()
    """KEY=VALUE, of the recipe."""
    sampler: RowSampler = "full"
    """The student at full or half frame rate; for a teacher's row many: all its steps, cut: at the student's."""
    run: str | None = None
    """The earlier row whose students are sampled; None: the row has runs of its own."""
    starts: dict[str, str] = Field(default_factory=dict)
    """Dotted keys of the recipe whose value is the run, of the same seed, of an earlier row."""
    share: float = Field(1.0, gt=0, le=1)
    """Share of the budget that its own run has; the rest is for the runs that it begins with."""
    updates: int | None = Field(None, ge=1, le=MOST_UPDATES)
    """Updates of its own run, whatever the budget is; None: as the budget gives."""
    shown: bool = True
    """False: it is trained for other rows, and not judged."""
    knob: KnobRecipe | None = None
    paper: PublishedRow | None = None

    @property
    def is_teacher(self) -> bool:
        return self.sampler in ("many", "cut")

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        if not name.strip(". ") or any(letter in name for letter in '/\\\0@"'):
            raise ValueError('it names folders: a word without / \\ @ and "')
        return name

    @model_validator(mode="after")
    def _check(self) -> RowRecipe:
        if (self.recipe is None) == (self.run is None):
            raise ValueError("it needs one of recipe (to train, or of a teacher) and run (another row's students)")
        if self.run is not None and (self.changes or self.starts or self.knob or self.updates or not self.shown):
            raise ValueError("it samples the students of another row, so it has nothing to train")
        if self.is_teacher and (self.run is not None or self.starts or self.knob):
            raise ValueError(f"sampler {self.sampler} is for a teacher, which is not trained")
        return self


SHARE = "share"
"""The key of a curve over the budget."""


class CurveRecipe(Section):
    """A recipe at several values of one key, each a row: how measures follow it."""

    name: str
    recipe: str
    key: str
    """A dotted key of the recipe, or "share": of the plan's forwards."""
    values: tuple[Any, ...] = Field(min_length=2, max_length=100)

    @property
    def points(self) -> dict[str, RowRecipe]:
        """Its rows, by the value as text."""
        return {str(value): self._point(value) for value in self.values}

    def _point(self, value: Any) -> RowRecipe:
        name = f"{self.name} {value}"
        if self.key == SHARE:
            return RowRecipe(name=name, recipe=self.recipe, share=value)
        return RowRecipe(name=name, recipe=self.recipe, changes=(f"{self.key}={value}",))


class TuningRecipe(Section):
    """How knobs are tuned: with seeds and on captions that judge nothing."""

    seeds: tuple[int, ...] = Field((1000,), min_length=1, max_length=100)
    clips: int = Field(512, ge=2, le=100_000)
    """Captions that the world draws and that no judged row is asked for."""


class AblationRecipe(Section):
    kind: Literal["ablation"] = "ablation"
    rows: tuple[RowRecipe, ...] = Field((), max_length=1000)
    curves: tuple[CurveRecipe, ...] = Field((), max_length=100)
    """They are run only if their names are given."""
    orderings: tuple[tuple[str, str], ...] = ()
    """Pairs of rows, of which the paper's order is held against what is found."""
    comparisons: tuple[tuple[str, str], ...] = ()
    """Pairs of rows of which no order is expected: how far the first is from the second."""
    forwards: int = Field(3800, ge=1, le=1_000_000_000)
    """Network forwards per clip of a batch of each student."""
    seeds: int = Field(3, ge=1, le=1000)
    """Seeds 0, 1, ... of each row; the same seed is the same noise for every method."""
    clips: int = Field(1024, ge=2, le=100_000)
    """Held-out captions that judge."""
    repeats: int = Field(8, ge=0, le=10_000)
    """Seeds of each open caption, for diversity."""
    shown: int = Field(6, ge=0, le=100)
    """Captions whose videos the page shows."""
    tuning: TuningRecipe = TuningRecipe()

    @model_validator(mode="after")
    def _check(self) -> AblationRecipe:
        if not self.rows and not self.curves:
            raise ValueError("it has neither rows nor curves: there is nothing to do")
        names: dict[str, RowRecipe] = {}
        for row in self.rows:
            if row.name in names:
                raise ValueError(f"two rows are called {row.name}")
            for other in (*row.starts.values(), *([] if row.run is None else [row.run])):
                if other not in names or names[other].is_teacher or names[other].run is not None:
                    raise ValueError(f"row {row.name} needs {other}, which is no row before it with runs of its own")
            names[row.name] = row
            if (share := _share(row, names)) > 1 + 1e-9:
                raise ValueError(f"row {row.name} and what it starts from have shares of {share:g} in all: at most 1")
        taken = set(names)
        for curve in self.curves:
            for name in (curve.name, *(row.name for row in curve.points.values())):
                if name in taken:
                    raise ValueError(f"curve {name} has the name of a row or of another curve")
                taken.add(name)
        unknown = [name for pair in self.orderings for name in pair if name not in names or names[name].paper is None]
        if unknown:
            raise ValueError(f"orderings name {unknown[0]}, which is no row that the paper has")
        unknown = [name for pair in self.comparisons for name in pair if name not in names or not names[name].shown]
        if unknown:
            raise ValueError(f"comparisons name {unknown[0]}, which is no row that is judged")
        counts = {len(row.knob.values): row.name for row in self.rows if row.knob is not None}
        if len(counts) > 1:
            (few, one), (many, other) = sorted(counts.items())[:2]
            raise ValueError(f"{one} has {few} trials and {other} {many}: every method gets as many")
        if any(seed < self.seeds or seed > MOST_SEED for seed in self.tuning.seeds):
            raise ValueError(f"tuning.seeds are {self.tuning.seeds}: they must be none of the {self.seeds} that judge")
        return self


def _share(row: RowRecipe, rows: Mapping[str, RowRecipe]) -> float:
    """The share of the budget of a row and of the runs that it begins with, each once; fixed updates are beside it."""
    found, left = dict[str, RowRecipe](), [row]
    while left:
        each = left.pop()
        found[each.name] = each
        left += [rows[name] for name in each.starts.values()]
    return sum(each.share for each in found.values() if each.updates is None)
