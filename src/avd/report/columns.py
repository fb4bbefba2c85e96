"""The columns of every table: what all rows have, then what the suites that judged them declare."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from avd.evaluation.protocols import check_protocols
from avd.evaluation.rows import Row
from avd.evaluation.suite import Measure, NumberFormat
from avd.evaluation.suites import declared_measures

_COMMON = (
    Measure("steps", "Steps", "", "Sampling steps from noise to video.", NumberFormat()),
    Measure(
        "network_calls",
        "Network calls",
        "fewer",
        "How often the large network runs for one video. Guidance doubles the calls of a step.",
        NumberFormat(),
    ),
    Measure(
        "seconds_per_video",
        "Time per video",
        "less",
        "Wall time of sampling one video on this machine, a clip's share of a batch, without text encoder and VAE.",
        NumberFormat(digits=2, unit=" s"),
    ),
)


@dataclass(frozen=True)
class Column:
    """A measure of the rows: a suite's, or with None one that all rows have."""

    measure: Measure
    suite: str | None
    title: str
    """The measure's, and before it the suite's name where rows of several suites stand in one table."""

    @property
    def heading(self) -> str:
        """The title, and where a good value lies."""
        return self.title + (f" ({self.measure.goal})" if self.measure.goal else "")

    def value(self, row: Row) -> float | None:
        """The row's value; None where the row has none."""
        if self.suite is not None:
            return row.score(self.suite, self.measure.key)
        value: float | None = getattr(row, self.measure.key)
        return value

    def error(self, row: Row) -> float | None:
        """The standard error of the row's value; None where none is known."""
        return None if self.suite is None else row.error(self.suite, self.measure.key)

    def text(self, row: Row) -> str:
        """The row's value as shown."""
        return self.measure.format.text(self.value(row))


def columns_of(rows: Sequence[Row], *, details: bool = False, mixed_protocols: bool = False) -> list[Column]:
    """The columns that some row has a value for, in declared order, suites as they first appear.

    With `details`, those too that are left out of tables. Raises UserError for rows of one suite that were judged by
    different protocols, unless they may be mixed.
    """
    if not mixed_protocols:
        check_protocols(rows)
    suites = list(dict.fromkeys(suite for row in rows for suite in row.scores))
    columns = [Column(measure, None, measure.title) for measure in _COMMON]
    for suite in suites:
        prefix = f"{suite}: " if len(suites) > 1 else ""
        measures = declared_measures(suite).values()
        columns += [Column(measure, suite, prefix + measure.title) for measure in measures]
    return [
        column
        for column in columns
        if (details or not column.measure.detail) and any(column.value(row) is not None for row in rows)
    ]
