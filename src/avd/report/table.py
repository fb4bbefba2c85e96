"""Rows as tables: one for the terminal, one in Markdown for the docs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table

from avd.evaluation.rows import Row
from avd.evaluation.suite import ABSENT
from avd.report.columns import columns_of
from avd.types import UserError


def terminal_table(rows: Sequence[Row]) -> Table:
    """A rich table that fits 80 characters: one line per measure, one column per row of results.

    The last column says where a good value lies.
    """
    table = Table(box=SIMPLE_HEAD, padding=0, pad_edge=False)
    table.add_column(no_wrap=True)
    for row in rows:
        table.add_column(row.name, justify="right", vertical="bottom")
    table.add_column("good", style="dim")
    for column in columns_of(rows):
        table.add_row(column.title, *map(column.text, rows), column.measure.goal)
    return table


def markdown_table(rows: Sequence[Row]) -> str:
    """A Markdown table with one line per name, in order of first appearance, and a sentence on how to read it.

    Rows of one name and different seeds become mean ± sample standard deviation.

    Raises `UserError` when two rows share both name and seed: they are not independent, and counting both would make
    the spread look smaller than it is.
    """
    groups: dict[str, dict[int, Row]] = {}
    for row in rows:
        seeds = groups.setdefault(row.name, {})
        if row.seed in seeds:
            raise UserError(f'two rows are named "{row.name}" with seed {row.seed}; keep one of them')
        seeds[row.seed] = row

    columns = columns_of(rows)
    heads = ["", *(column.heading for column in columns), "Videos", "Seeds"]
    lines = [_line(heads), _line(["---"] + ["---:"] * (len(heads) - 1))]
    for name, seeds in groups.items():
        cells = [column.measure.format.spread_text(_present(map(column.value, seeds.values()))) for column in columns]
        videos = sum(row.videos for row in seeds.values())
        lines.append(_line([name, *cells, str(videos), str(len(seeds))]))
    lines += ["", f"mean ± sample standard deviation over seeds, where there are several; {ABSENT} does not apply."]
    return "\n".join(lines) + "\n"


def _present(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
