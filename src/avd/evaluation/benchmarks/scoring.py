"""What an official benchmark scores, and how its dimensions become totals.

A dimension's score x, as the official code writes it, is normalised to (x - least) / (most - least). The score y of a
category is the weighted mean of its dimensions, and the total the weighted mean of the categories:

    y = sum_d w_d (x_d - least_d) / (most_d - least_d) / sum_d w_d        total = sum_c W_c y_c / sum_c W_c

Nothing is clipped to `least` and `most`, as in the official tables: a score past `most` counts for more than 1. A
category of which a dimension is missing has no score, and without all categories there is no total.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

from avd.evaluation.benchmarks.known import Benchmark
from avd.evaluation.suite import Measure, NumberFormat, Suite, Values
from avd.types import UserError

_TOTAL = "total"
_ROUNDING = 1e-5
"""How far past its range a score may be: cosines in 32 bits of a video that stands still have a mean of 1.00000036."""
_PER_CENT = NumberFormat(digits=2, scale=100.0, unit=" %")


@dataclass(frozen=True)
class Dimension:
    """One thing that the official code scores, under `name`."""

    name: str
    help: str
    """What it says, in a sentence of plain language."""
    least: float = 0.0
    most: float = 1.0
    """The scores that count as 0 and 1 in a total."""
    weight: float = 1.0
    signed: bool = False
    """Whether scores below 0 are possible: those that are a cosine."""
    partial_list: bool = False
    """Whether the official code leaves out of its list the videos in which it does not find what it judges."""
    per_prompt: bool = False
    """Whether its list has an item per prompt, named by the first video, instead of one per video."""

    @property
    def key(self) -> str:
        """The key of its measure: lower case, words joined by underscores."""
        return self.name.lower().replace("-", "_")

    @property
    def title(self) -> str:
        return self.name.replace("_", " ").capitalize()

    def normalised(self, score: float) -> float:
        """The score on the scale of totals."""
        return (score - self.least) / (self.most - self.least)

    @property
    def lowest(self) -> float:
        """The lowest score that there can be; the highest is 1."""
        return -1.0 if self.signed else 0.0

    def in_range(self, score: float) -> float | None:
        """What the official code meant by `score`: in the range, past which rounding may be; None for what is not."""
        clipped = min(max(score, self.lowest), 1.0)
        return clipped if abs(score - clipped) <= _ROUNDING else None


@dataclass(frozen=True)
class Category:
    """A group of dimensions with a score of its own."""

    key: str
    title: str
    help: str
    dimensions: tuple[Dimension, ...]
    weight: float = 1.0

    def score(self, scores: Mapping[str, float | None]) -> float | None:
        """The category's score from scores by key of their dimension; None where one is missing."""
        found = [(each, scores.get(each.key)) for each in self.dimensions]
        return _weighted_mean((None if score is None else each.normalised(score), each.weight) for each, score in found)


@dataclass(frozen=True)
class Scoring:
    """What a benchmark's official code scores. Its package has the class `entry`, which judges a folder of videos."""

    benchmark: Benchmark
    entry: str
    categories: tuple[Category, ...]
    install: str
    """The commands that make a Python with the official package; it is `ENV/bin/python` then."""

    @property
    def dimensions(self) -> tuple[Dimension, ...]:
        """All of them, in the order in which they are shown."""
        return tuple(dimension for each in self.categories for dimension in each.dimensions)

    @property
    def measures(self) -> tuple[Measure, ...]:
        """The total, the categories and the dimensions as measures of a suite."""
        return tuple(self._measures())

    def _measures(self) -> Iterator[Measure]:
        formula = ", ".join(f"{each.weight:g} x {each.title.lower()}" for each in self.categories)
        yield Measure(
            _TOTAL, "Total", "high", f"{self.benchmark.title}'s total: weighted mean of {formula}.", _PER_CENT
        )
        for category in self.categories:
            yield Measure(category.key, category.title, "high", category.help, _PER_CENT)
        for each in self.dimensions:
            yield Measure(each.key, each.title, "high", each.help, _PER_CENT, least=each.lowest, most=1.0)

    def choose(self, names: Collection[str]) -> tuple[Dimension, ...]:
        """The dimensions of these names, in the benchmark's order; all without names.

        Letter case and the choice of hyphen or underscore do not matter. Raises UserError for one that there is not.
        """
        by_key = {each.key: each for each in self.dimensions}
        wanted = {name.lower().replace("-", "_"): name for name in names}
        for key, name in wanted.items():
            if key not in by_key:
                known = ", ".join(each.name for each in self.dimensions)
                raise UserError(f"{self.benchmark.title} has no dimension {name!r}: choose from {known}")
        return tuple(each for each in self.dimensions if not wanted or each.key in wanted)

    def scores(self, dimensions: Mapping[str, float]) -> Values:
        """Values of all measures from scores by key of their dimension: None for what is missing, and what needs it."""
        means = {each.key: each.score(dimensions) for each in self.categories}
        total = _weighted_mean((means[each.key], each.weight) for each in self.categories)
        return {_TOTAL: total} | means | {each.key: dimensions.get(each.key) for each in self.dimensions}

    def missing(self, values: Values) -> tuple[Dimension, ...]:
        """The dimensions that have no value: a result of which some are missing is partial."""
        return tuple(each for each in self.dimensions if values.get(each.key) is None)


@runtime_checkable
class OfficialSuite(Suite, Protocol):
    """A suite that official code judges, a folder of videos at a time."""

    scoring: ClassVar[Scoring]

    def arguments(self) -> dict[str, Any]:
        """What the official `evaluate` is called with, besides the videos and the dimension."""
        ...


def _weighted_mean(terms: Iterable[tuple[float | None, float]]) -> float | None:
    """The mean of (value, weight); None where a value is."""
    total = weights = 0.0
    for value, weight in terms:
        if value is None:
            return None
        total, weights = total + value * weight, weights + weight
    return total / weights
