"""An ablation's results as the tables of a page of the docs, and as text between two marks of it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from avd.evaluation.rows import Results, Row
from avd.evaluation.suite import ABSENT, NumberFormat
from avd.evaluation.suites import declared_measures
from avd.files import read_text, write_text
from avd.report.table import markdown_table
from avd.types import UserError

BEGIN, END = "<!-- avd ablate --report -->", "<!-- end of what avd ablate --report writes -->"
"""The lines between which a page's tables stand."""
_ABLATION = ("instance_preservation", "dynamic_degree")
"""Measures that the paper's ablation has too."""
_SENTENCES = ("orderings", "comparisons")
_TOTALS = ("vbench2", "vbench")
_COUNT, _SECONDS, _TOTAL = NumberFormat(), NumberFormat(digits=2), NumberFormat(digits=2)


def ablation_tables(results: Results, stale: Mapping[str, str]) -> str:
    """Tables of all rows in Markdown: a suite each, what they cost, what the paper has of them; and sentences on what
    agrees. `stale` has the reasons why rows are marked so, by name."""
    meta, names = results.meta, {name: f"{name} (untuned)" for name in results.meta.get("untuned", [])}
    rows = [row.model_copy(update={"name": names.get(row.name, row.name)}) for row in without_curves(results)]
    marks = {names.get(name, name): reason for name, reason in stale.items()}
    papers = {names.get(name, name): paper for name, paper in meta.get("paper", {}).items()}
    parts = [_of_suite(rows, suite, marks) for suite in dict.fromkeys(suite for row in rows for suite in row.scores)]
    parts += [_costs(rows, marks), _paper(rows, papers, marks)]
    parts += ["\n".join(f"- {line}" for line in sentence_lines(meta.get(key, []), stale)) for key in _SENTENCES]
    parts.append(_knobs(meta.get("knobs", {}), stale))
    parts += [_curve(results.rows, name, curve, stale) for name, curve in meta.get("curves", {}).items()]
    return "\n\n".join(part.strip() for part in parts if part.strip()) + "\n"


def sentence_lines(sentences: Sequence[Mapping[str, Any]], stale: Mapping[str, str]) -> list[str]:
    """What was found of pairs of rows, with a mark where one of them is in `stale`."""
    lines = []
    for sentence in sentences:
        old = [name for name in sentence["rows"] if name in stale]
        lines.append(f"{sentence['text']} (Stale: {', '.join(old)}.)" if old else sentence["text"])
    return lines


def without_curves(results: Results) -> list[Row]:
    """The rows that are no points of a curve."""
    points = {name for curve in results.meta.get("curves", {}).values() for name in curve["rows"]}
    return [row for row in results.rows if row.name not in points]


def write_between(page: Path, text: str) -> None:
    """Put `text` between the marks of a page. Raises UserError for one without them."""
    found = read_text(page)
    if len(re.findall(f"{re.escape(BEGIN)}.*?{re.escape(END)}", found, flags=re.DOTALL)) != 1:
        raise UserError(f"{page} has no place for tables: write the lines {BEGIN} and {END} where they belong, once")
    before, _, rest = found.partition(BEGIN)
    after = rest.partition(END)[2]
    write_text(page, f"{before}{BEGIN}\n\n{text}\n{END}{after}")


def _of_suite(rows: Sequence[Row], suite: str, stale: Mapping[str, str]) -> str:
    return f"**Suite {suite}**\n\n{_table(rows, suite, stale)}"


def _table(rows: Sequence[Row], suite: str, stale: Mapping[str, str]) -> str:
    """The table of one suite's measures."""
    judged = [row for row in rows if suite in row.scores]
    alone = [
        row.model_copy(update={"scores": {suite: row.scores[suite]}, "errors": {suite: row.errors.get(suite, {})}})
        for row in judged
    ]
    return markdown_table(alone, stale=stale)


def _marked(name: str, stale: Mapping[str, str]) -> str:
    return f"{name} (stale)" if name in stale else name


def _costs(rows: Sequence[Row], stale: Mapping[str, str]) -> str:
    """What each student has cost, and how many updates it would make in the time of the slowest."""
    trained: dict[str, list[Row]] = {}
    for row in rows:
        if row.training is not None:
            trained.setdefault(row.name, []).append(row)
    if not trained:
        return ""
    slowest = max(_mean([row.training.seconds for row in each if row.training]) for each in trained.values())
    lines = [
        "**Training**",
        "",
        "|  | Updates | Network forwards per clip | Seconds | Seconds per update | Updates in the slowest's time |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, each in trained.items():
        costs = [row.training for row in each if row.training is not None]
        updates, seconds = _mean([cost.updates for cost in costs]), [cost.seconds for cost in costs]
        cells = [
            _COUNT.text(updates),
            _COUNT.text(_mean([cost.forwards for cost in costs])),
            _COUNT.spread_text(seconds),
            _SECONDS.spread_text([cost.seconds_per_update for cost in costs]),
            _COUNT.text(updates * slowest / _mean(seconds)) if all(seconds) else ABSENT,
        ]
        lines.append(_line([_marked(name, stale), *cells]))
    machines = ", ".join(dict.fromkeys(row.machine for each in trained.values() for row in each))
    return "\n".join([*lines, "", f"Equal forwards are equal work; seconds are those of this machine ({machines})."])


def _paper(rows: Sequence[Row], published: Mapping[str, Mapping[str, Any]], stale: Mapping[str, str]) -> str:
    """What the paper has of the rows beside what the world's suite finds."""
    measures = declared_measures("world")
    lines = []
    for name, paper in published.items():
        found = [row for row in rows if row.name == name]
        cells = []
        for key in _ABLATION:
            shown = measures[key].format
            values = [value for row in found if (value := row.score("world", key)) is not None]
            errors = [error for row in found if (error := row.error("world", key)) is not None]
            cells += [shown.text(paper.get(key)), shown.spread_text(values, errors)]
        totals = [_TOTAL.text(paper.get(key)) for key in _TOTALS]
        lines.append(_line([_marked(name, stale), str(paper["name"]), *cells, *totals]))
    if not lines:
        return ""
    titles = [title for key in _ABLATION for title in (f"{measures[key].title}, paper", "here")]
    heads = ["", "The paper's row", *titles, "VBench-2.0, paper", "VBench, paper"]
    return "\n".join(["**Beside the paper**", "", _line(heads), _line(["---"] * 2 + ["---:"] * 6), *lines])


def _knobs(knobs: Mapping[str, Mapping[str, Any]], stale: Mapping[str, str]) -> str:
    """What was tuned."""
    if not knobs:
        return ""
    lines = ["**Tuned**", "", "|  | Knob | Used | Losses of the trials |", "| --- | --- | --- | --- |"]
    for name, knob in knobs.items():
        trials = ", ".join(f"{each['value']}: {each['loss']:.3f} ± {each['error']:.3f}" for each in knob["trials"])
        lines.append(_line([_marked(name, stale), f"`{knob['key']}`", str(knob["value"]), trials]))
    note = "A row that is marked as untuned has no knob, or not all of its trials yet: it is as its recipe has it."
    return "\n".join([*lines, "", note])


def _curve(rows: Sequence[Row], name: str, curve: Mapping[str, Any], stale: Mapping[str, str]) -> str:
    """How the measures follow one key, a line per value."""
    values: Mapping[str, str] = curve["rows"]
    points = [row.model_copy(update={"name": values[row.name]}) for row in rows if row.name in values]
    if not points:
        return ""
    marks = {values[row]: reason for row, reason in stale.items() if row in values}
    title = f"**Curve {name}: {curve['recipe']} by `{curve['key']}`**"
    return f"{title}\n\n{_table(points, 'world', marks)}"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
