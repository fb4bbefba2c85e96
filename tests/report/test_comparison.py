"""The terminal's table of a comparison, and the CSV of its clips."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from rich.console import Console

from avd.evaluation.comparison import JudgedSet, compare_sets
from avd.evaluation.suite import ClipRecord, Prompt, Shape
from avd.evaluation.suites.native import NativeSuite
from avd.measures.diversity import signature
from avd.report import comparison_table, write_clip_values

SUITE = NativeSuite()
SIGNED = {"signature": asdict(signature(np.zeros((17, 48, 64, 3), dtype=np.uint8)))}


def judged(name: str, saturations: Sequence[float]) -> JudgedSet:
    """A clip per saturation, each of its own prompt; nothing else is measured of them."""
    records = [
        ClipRecord(
            f"{i}.mp4", Prompt(f"prompt {i}, with a comma"), Shape(17, 48, 64, 8.0), {"saturation": value} | SIGNED
        )
        for i, value in enumerate(saturations)
    ]
    return JudgedSet(name, tuple(records), {})


def shown(student: Sequence[float], teacher: Sequence[float], unpaired: bool = False) -> str:
    compared = compare_sets(SUITE, judged("student", student), judged("teacher", teacher), unpaired=unpaired)
    console = Console(width=80)
    with console.capture() as capture:
        console.print(comparison_table(compared))
    return capture.get()


def test_a_line_has_change_interval_limit_and_verdict() -> None:
    text = shown([0.6] * 10, [0.5] * 10)
    assert text.splitlines()[0].strip() == "student against teacher, 10 pairs of clips"
    (line,) = [line for line in text.splitlines() if "Saturation" in line]
    assert " ".join(line.split()) == "Saturation +20.0 % +20.0 to +20.0 -10 to +10 outside"
    assert "not paired" in shown([0.6] * 10, [0.5] * 10, unpaired=True)


def test_every_measure_has_one_line_of_80_characters() -> None:
    values = dict.fromkeys([measure.key for measure in SUITE.measures[:12]], 0.2) | SIGNED
    sets = [judged("student", [0.6] * 10), judged("teacher", [0.5] * 10)]
    full = [replace(each, records=tuple(replace(record, values=values) for record in each.records)) for each in sets]
    console = Console(width=80)
    with console.capture() as capture:
        console.print(comparison_table(compare_sets(SUITE, *full)))
    assert len(capture.get().rstrip().splitlines()) == 3 + 12  # title, headings, a rule


def test_few_prompts_are_reported_once() -> None:
    text = shown([0.6] * 4, [0.5] * 4)
    assert "undecided" in text and text.count("fewer than 10 prompts") == 1
    assert "fewer than" not in shown([0.5] * 10, [0.5] * 10)


def test_the_csv_holds_every_clip_of_both_sets_and_the_measures_there_are(tmp_path: Path) -> None:
    write_clip_values(tmp_path / "clips.csv", SUITE.measures, [judged("a", [0.1, 0.2]), judged("b", [0.3])])
    with (tmp_path / "clips.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [(line["row"], line["clip"], line["saturation"]) for line in lines] == [
        ("a", "0.mp4", "0.1"),
        ("a", "1.mp4", "0.2"),
        ("b", "0.mp4", "0.3"),
    ]
    assert lines[1]["prompt"] == "prompt 1, with a comma"
    about = {"part": "", "repeat": "0", "frames": "17", "height": "48", "width": "64", "fps": "8.0"}
    assert about.items() <= lines[0].items() and "motion" not in lines[0]
