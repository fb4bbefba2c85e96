"""Tables of an ablation: what is stale or untuned is marked wherever it stands."""

from __future__ import annotations

from collections.abc import Callable

from avd.evaluation.rows import Results, Row, Training
from avd.report.ablation import ablation_tables


def test_lines_of_stale_and_untuned_rows_are_marked(make_row: Callable[..., Row]) -> None:
    cost = Training(updates=1, forwards=26.0, seconds=2.0, seconds_per_update=2.0)
    rows = [make_row(name=name, training=cost) for name in ("avd", "dmd")]
    trials = [{"value": 1.0, "loss": 0.5, "error": 0.1}]
    meta = {
        "paper": {name: {"name": name.upper()} for name in ("avd", "dmd")},
        "knobs": {"avd": {"key": "objective.regression.k", "value": 1.0, "trials": trials}},
        "untuned": ["dmd"],
        "orderings": [{"rows": ["avd", "dmd"], "text": "avd against dmd: agrees."}],
        "comparisons": [{"rows": ["dmd", "dmd"], "text": "dmd against dmd: undecided."}],
    }
    lines = ablation_tables(Results(rows=rows, meta=meta), {"avd": "its weights are others"}).splitlines()
    table_lines = [line for line in lines if line.startswith(("| avd", "| dmd"))]
    assert len(table_lines) == 7  # the suite's, training and the paper's have both, tuning has avd
    assert all(line.startswith(("| avd (stale) |", "| dmd (untuned) |")) for line in table_lines)
    assert "- avd against dmd: agrees. (Stale: avd.)" in lines and "- dmd against dmd: undecided." in lines
