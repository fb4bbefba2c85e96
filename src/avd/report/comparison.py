"""A comparison with a reference, as a table for the terminal."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.table import Table

from avd.evaluation.comparison import LEAST_PROMPTS, SetComparison


def comparison_table(compared: SetComparison) -> Table:
    """A rich table that fits 80 characters: per measure the change with its interval, the limit, and the verdict."""
    pairs = "clips not paired" if compared.pairs is None else f"{len(compared.pairs)} pairs of clips"
    table = Table(
        box=SIMPLE_HEAD,
        padding=0,
        pad_edge=False,
        show_edge=False,
        title=f"{compared.subject.name} against {compared.reference.name}, {pairs}",
        title_justify="left",
        caption_justify="left",
    )
    table.add_column(no_wrap=True)
    for heading in ("change", "95 % interval", "limit"):
        table.add_column(heading, justify="right")
    table.add_column("verdict")
    for each in compared.differences:
        limit = each.measure.limit_text().removesuffix(each.measure.change_format.unit)
        verdict = "" if each.verdict is None else each.verdict.name
        table.add_row(each.measure.title, each.middle_text(), each.interval_text(), limit, verdict)
    few = any(each.prompts < LEAST_PROMPTS for each in compared.differences)
    notes = [f"no interval, and no verdict, of fewer than {LEAST_PROMPTS} prompts"] if few else []
    table.caption = "\n".join(filter(None, [*notes, compared.partners_note(), compared.size_note()]))
    return table
