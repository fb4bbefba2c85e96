"""Rows as tables: one for the terminal, one in Markdown for the docs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table

from avd.evaluation.protocols import check_protocols, partial_notes, protocol_texts
from avd.evaluation.rows import Row
from avd.evaluation.suite import ABSENT
from avd.report.columns import Column, columns_of
from avd.types import UserError

_IN_TERMINAL = 5
"""Rows that fit beside each other in 80 characters."""


def terminal_table(rows: Sequence[Row]) -> Group:
    """Rich tables that fit 80 characters: one line per measure, one column per row of results, five to a table.

    The last column says where a good value lies. Raises UserError for rows of different protocols.
    """
    columns, tables = columns_of(rows), []
    for start in range(0, len(rows), _IN_TERMINAL):
        shown = rows[start : start + _IN_TERMINAL]
        notes = "\n".join(partial_notes(shown)) or None
        table = Table(box=SIMPLE_HEAD, padding=0, pad_edge=False, caption=notes, caption_justify="left")
        table.add_column(no_wrap=True)
        for row in shown:
            table.add_column(row.name, justify="right", vertical="bottom")
        table.add_column("good", style="dim")
        for column in columns:
            table.add_row(column.title, *map(column.text, shown), column.measure.goal)
        tables.append(table)
    return Group(*tables)


def markdown_table(
    rows: Sequence[Row], *, mixed_protocols: bool = False, stale: Mapping[str, str] | None = None
) -> str:
    """A Markdown table with one line per name, in order of first appearance, and a sentence on how to read it.

    Rows of one name and different seeds become mean ± sample standard deviation, and the standard error of one row
    stands in brackets where it is known. A row that is there twice, as a teacher is in the files of its students,
    counts once. With `mixed_protocols` rows may differ in protocol, and a column says in what. `stale` has the reasons
    why rows are marked so, by name.

    Raises `UserError` when two rows share both name and seed: they are not independent, and counting both would make
    the spread look smaller than it is. So do rows of different protocols, unless they may be mixed.
    """
    groups: dict[str, dict[int, Row]] = {}
    for row in rows:
        seeds = groups.setdefault(row.name, {})
        if row.seed in seeds and seeds[row.seed] != row:
            raise UserError(f'two rows are named "{row.name}" with seed {row.seed}; keep one of them')
        seeds[row.seed] = row

    for seeds in groups.values():
        check_protocols(list(seeds.values()))  # a mean is of one protocol, whatever stands beside it
    columns = columns_of(rows, mixed_protocols=mixed_protocols)
    protocols = dict(zip((row.name for row in rows), protocol_texts(rows), strict=True)) if mixed_protocols else {}
    heads = ["", *(column.heading for column in columns), "Videos", "Seeds", *["Protocol"] * mixed_protocols]
    lines = [_line(heads), _line(["---"] + ["---:"] * (len(heads) - 1))]
    for name, seeds in groups.items():
        cells = [_cell(column, list(seeds.values())) for column in columns]
        videos = sum(row.videos for row in seeds.values())
        protocol = [protocols[name] or ABSENT] if mixed_protocols else []
        mark = " (stale)" if stale and name in stale else ""
        lines.append(_line([name + mark, *cells, str(videos), str(len(seeds)), *protocol]))
    note = f"mean ± sample standard deviation over seeds, where there are several; {ABSENT} does not apply."
    if any(row.errors for row in rows):
        note = f"{note[:-1]}; in brackets the standard error of one seed's value, from its number of videos."
    lines += ["", note]
    for name in groups:
        if stale and name in stale:
            lines += ["", f"{name} is stale: {stale[name]}."]
    lines += [text for note in partial_notes(rows) for text in ("", note)]
    return "\n".join(lines) + "\n"


def _cell(column: Column, rows: Sequence[Row]) -> str:
    """Mean, spread over the rows and standard error of a column's values."""
    return column.measure.format.spread_text(_present(map(column.value, rows)), _present(map(column.error, rows)))


def _present(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
