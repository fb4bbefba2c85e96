from __future__ import annotations

import statistics
from collections.abc import Callable

import pytest
from rich.console import Console

from avd.report import Row, markdown_table, terminal_table
from avd.types import UserError

MakeRow = Callable[..., Row]


def cells_of(markdown: str, name: str) -> dict[str, str]:
    """Cells of the line called `name`, by title without its goal."""
    heads, _, *lines = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in markdown.splitlines() if "|" in line
    ]
    (line,) = [line for line in lines if line[0] == name]
    return dict(zip([head.partition(" (")[0] for head in heads], line, strict=True))


def test_the_terminal_shows_every_row_and_measure_within_80_characters(make_row: MakeRow) -> None:
    names = ["rendered clips", "teacher, 50 steps", "teacher, 4 steps", "AVD, 4 steps", "AVD, 4 steps, half rate"]
    rows = [make_row(name=name, seconds_per_video=None if name == "rendered clips" else 12.25) for name in names]
    console = Console(width=80)
    with console.capture() as capture:
        console.print(terminal_table(rows))
    text = capture.get()
    for expected in ["rendered", "teacher,", "steps,", "Instance preservation", "-0.004", "75.0 %", "12.25 s", "–"]:
        assert expected in text
    assert "…" not in text


def test_seeds_become_mean_and_spread(make_row: MakeRow) -> None:
    ratios = [0.9, 1.0, 1.4]
    rows = [make_row(seed=seed, speed_ratio=ratio, clipped_share=ratio / 100) for seed, ratio in enumerate(ratios)]
    cells = cells_of(markdown_table(rows), "AVD, 4 steps")
    assert cells["Speed ratio"] == f"{statistics.mean(ratios):.2f} ± {statistics.stdev(ratios):.2f}"
    assert cells["Clipped pixels"] == "1.1 ± 0.3 %"
    assert cells["Dynamic degree"] == "75.0 %"
    assert (cells["Seeds"], cells["Videos"]) == ("3", "48")


def test_standard_errors_stand_in_brackets(make_row: MakeRow) -> None:
    rows = [
        make_row(seed=seed, dynamic_degree=share, errors={"world": {"dynamic_degree": error, "flicker": None}})
        for seed, (share, error) in enumerate([(0.5, 0.01), (0.6, 0.03)])
    ]
    cells = cells_of(markdown_table(rows), "AVD, 4 steps")
    assert cells["Dynamic degree"] == "55.0 ± 7.1 (2.2) %"
    assert cells["Flicker"] == "0.0031"
    assert "in brackets" in markdown_table(rows) and "in brackets" not in markdown_table([make_row()])
    assert cells_of(markdown_table(rows[:1]), "AVD, 4 steps")["Dynamic degree"] == "50.0 (1.0) %"


def test_stale_rows_are_marked_with_the_reason(make_row: MakeRow) -> None:
    rows = [make_row(name="old"), make_row(name="new")]
    markdown = markdown_table(rows, stale={"old": "its teacher is gone"})
    assert "| old (stale) |" in markdown and "| new |" in markdown
    assert "old is stale: its teacher is gone." in markdown


def test_one_seed_has_no_spread_and_names_keep_their_order(make_row: MakeRow) -> None:
    markdown = markdown_table([make_row(name="teacher"), make_row(name="DMD", seconds_per_video=None)])
    assert markdown.index("| teacher") < markdown.index("| DMD")
    assert cells_of(markdown, "teacher")["Speed ratio"] == "0.98"
    assert cells_of(markdown, "DMD")["Time per video"] == "–"


def test_two_results_of_one_name_and_seed_are_refused(make_row: MakeRow) -> None:
    with pytest.raises(UserError, match=r"AVD, 4 steps.*seed 0"):
        markdown_table([make_row(), make_row(flicker=0.5)])


def test_the_columns_are_those_that_the_suite_declares_in_its_order(make_row: MakeRow) -> None:
    heads = markdown_table([make_row(diversity_colour=0.5)]).splitlines()[0]
    assert heads == (
        "|  | Steps | Network calls (fewer) | Time per video (less) | Saturation error (near 0) | "
        "Saturation drift (near 0) | Clipped pixels (low) | Dynamic degree (as rendered) | Speed ratio (near 1) | "
        "Instance preservation (high) | Caption accuracy (high) | Flicker (low) | Videos | Seeds |"
    )


def test_what_no_row_has_is_not_shown(make_row: MakeRow) -> None:
    rows = [make_row(seconds_per_video=None, flicker=None), make_row(name="DMD", seconds_per_video=None, flicker=None)]
    console = Console(width=80)
    with console.capture() as capture:
        console.print(terminal_table(rows))
    for text in (markdown_table(rows), capture.get()):
        assert "Time per video" not in text and "Flicker" not in text and "Speed ratio" in text


def test_more_rows_than_fit_are_further_tables(make_row: MakeRow) -> None:
    rows = [make_row(name=f"student {i}") for i in range(7)]
    console = Console(width=80)
    with console.capture() as capture:
        console.print(terminal_table(rows))
    text = capture.get()
    assert text.count("Saturation error") == 2 and text.count("good") == 2
    assert "student" in text and "…" not in text


def test_a_row_that_is_there_twice_counts_once(make_row: MakeRow) -> None:
    teacher, student = make_row(name="teacher"), make_row(name="student")
    assert markdown_table([student, teacher, teacher]) == markdown_table([student, teacher])
