"""What a run leaves to be read: rows of measures, and the tables, pages and plots made from them. No torch."""

from __future__ import annotations

from avd.evaluation.rows import Results, Row, read_results, write_results
from avd.report.ablation import ablation_tables, sentence_lines, without_curves, write_between
from avd.report.clip_values import write_clip_values
from avd.report.comparison import comparison_table
from avd.report.comparison_page import ComparisonPage, ShownSet
from avd.report.page import write_report
from avd.report.sheet import contact_sheet
from avd.report.table import markdown_table, terminal_table

__all__ = [
    "ComparisonPage",
    "Results",
    "Row",
    "ShownSet",
    "ablation_tables",
    "comparison_table",
    "contact_sheet",
    "markdown_table",
    "read_results",
    "sentence_lines",
    "terminal_table",
    "without_curves",
    "write_between",
    "write_clip_values",
    "write_report",
    "write_results",
]
