"""A comparison with a reference, as a table for the terminal."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.table import Table

from avd.evaluation.comparison import SetComparison


def comparison_table(compared: SetComparison) -> Table:
    """A rich table: one line per measure, the change from the reference with its interval, and the verdict."""
    against = f"{compared.subject.name} against {compared.reference.name}"
    if compared.pairs is None:
        title = f"{against}, clips not paired"
    else:
        title = f"{against}, {len(compared.pairs)} pairs of clips"
    table = Table(box=SIMPLE_HEAD, padding=0, pad_edge=False, title=title, title_justify="left")
    table.add_column(no_wrap=True)
    table.add_column("change (95 % interval)", justify="right")
    table.add_column("verdict (limit)")
    for each in compared.differences:
        table.add_row(each.measure.title, each.change_text(), each.verdict_text())
    return table
