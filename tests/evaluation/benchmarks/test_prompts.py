"""The prompts of a benchmark: where they are found, what is refused, and texts in their place."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from avd.evaluation.benchmarks.known import VBENCH, VBENCH2, Benchmark, find_benchmark
from avd.evaluation.benchmarks.prompts import read_prompt_list, read_rewritten
from avd.evaluation.suites import suite_class
from avd.types import UserError
from helpers.benchmarks import LONG


def test_the_file_is_found_in_packages_and_checkouts(infos: Path, tmp_path: Path) -> None:
    inner = infos / "vbench2" / "VBench2_full_info.json"
    shutil.copytree(infos / "vbench2", tmp_path / "checkout" / "VBench-2.0" / "vbench2")
    lists = [read_prompt_list(VBENCH2, place) for place in (inner, inner.parent, infos, tmp_path / "checkout")]
    assert len({each.digest for each in lists}) == 1
    assert lists[0].prompts == ("a red square", LONG, "a blue circle") and len(lists[0].entries) == 5
    assert lists[0].dimensions == ("Diversity", "Complex_Plot", "Multi-View_Consistency", "Human_Anatomy")
    with pytest.raises(UserError, match=r"checkout holds none of VBench_full_info\.json, vbench/VBench_full"):
        read_prompt_list(VBENCH, tmp_path / "checkout")
    with pytest.raises(UserError, match=r"there is no .*nowhere: name VBench_full_info\.json"):
        read_prompt_list(VBENCH, tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"suite 'world' is no benchmark .* vbench or vbench2"):
        find_benchmark("world")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[{", r"broken JSON \(.*line 1\)"),
        ("{}", "holds no list of prompts"),
        ("[]", "holds no list of prompts"),
        ('["a ball"]', "entry 1: 'prompt_en' is None"),
        ('[{"prompt_en": " ", "dimension": ["color"]}]', "entry 1: 'prompt_en' is ' '"),
        ('[{"prompt_en": "a\\ud800b", "dimension": ["color"]}]', "entry 1: 'prompt_en' is .* half a character"),
        (
            '[{"prompt_en": "a", "dimension": ["colour"]}]',
            "has the dimension 'colour', which is none of VBench: name the V",
        ),
        (
            '[{"prompt_en": "a", "dimension": ["Diversity"]}]',
            "dimension 'Diversity', which is none of VBench: .*--suite",
        ),
        ('[{"prompt_en": "a", "dimension": "color"}]', "entry 1: 'dimension' is 'color'"),
        (
            '[{"prompt_en": "a", "dimension": ["color"]}, {"prompt_en": "a", "dimension": []}]',
            "entry 2: 'dimension' is",
        ),
    ],
)
def test_what_is_no_list_of_prompts_is_one_line(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "info.json"
    path.write_text(content)
    with pytest.raises(UserError, match=message) as error:
        read_prompt_list(VBENCH, path)
    assert len(str(error.value).splitlines()) == 1


def test_the_digest_is_of_what_the_file_says(tmp_path: Path) -> None:
    entry, path, digests = {"prompt_en": "a", "dimension": ["color"]}, tmp_path / "info.json", []
    swapped = dict(reversed(entry.items()))
    for text in (json.dumps([entry]), json.dumps([swapped], indent=4) + "\n", json.dumps([entry, entry])):
        path.write_text(text)
        digests.append(read_prompt_list(VBENCH, path).digest)
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize("benchmark", [VBENCH, VBENCH2])
def test_the_dimensions_of_a_list_are_those_that_are_scored(benchmark: Benchmark) -> None:
    scored = suite_class(benchmark.name).scoring.dimensions  # type: ignore[attr-defined]
    assert sorted(benchmark.dimensions) == sorted(each.name for each in scored)


def rewritten(folder: Path, lines: list[str], originals: list[str] | None, entries: list[Any]) -> dict[str, str]:
    (folder / "info.json").write_text(json.dumps([{"prompt_en": each, "dimension": ["color"]} for each in entries]))
    (folder / "new.txt").write_text("\n".join(lines) + "\n")
    if originals is not None:
        (folder / "old.txt").write_text("\n".join(originals) + "\n")
    prompts = read_prompt_list(VBENCH, folder / "info.json")
    return read_rewritten(folder / "new.txt", prompts, None if originals is None else folder / "old.txt").texts


def test_rewritten_texts_follow_the_entries_or_a_list(tmp_path: Path) -> None:
    entries = ["a", "b", "a"]
    assert rewritten(tmp_path, ["A one", "B", "A two"], None, entries) == {"a": "A two", "b": "B"}
    assert rewritten(tmp_path, ["B", "A", "C"], ["b", "a ", "c"], entries) == {"a": "A", "b": "B"}


@pytest.mark.parametrize(
    ("lines", "originals", "message"),
    [
        (["A"], None, r"new\.txt has 1 lines and .*info\.json has entries 2: name the list .* --originals"),
        (["A"], ["a", "b"], r"new\.txt has 1 lines and .*old\.txt has 2"),
        (["A", "", "B"], ["a", "c", "b"], r"new\.txt, line 2, is empty"),
        (["A", "B"], ["a", "c"], r"old\.txt lacks the prompt 'b' of .*info\.json"),
    ],
)
def test_rewritten_texts_that_do_not_fit_are_refused(
    lines: list[str], originals: list[str] | None, message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        rewritten(tmp_path, lines, originals, ["a", "b"])


def test_the_digest_of_rewritten_texts_is_theirs(tmp_path: Path) -> None:
    (tmp_path / "info.json").write_text(json.dumps([{"prompt_en": "a", "dimension": ["color"]}]))
    prompts, digests = read_prompt_list(VBENCH, tmp_path / "info.json"), []
    for text in ("A\n", "A\n\n", "B\n"):
        (tmp_path / "new.txt").write_text(text)
        digests.append(read_rewritten(tmp_path / "new.txt", prompts).digest)
    assert digests[0] == digests[1] != digests[2]
