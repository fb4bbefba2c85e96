"""The videos of a benchmark and their names, on cut-down lists."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from avd.evaluation.benchmarks.known import VBENCH, VBENCH2, Benchmark
from avd.evaluation.benchmarks.layout import Layout, make_layout
from avd.evaluation.benchmarks.prompts import read_prompt_list
from avd.types import UserError
from helpers.benchmarks import LONG


def test_vbench_is_one_folder_of_five_samples(infos: Path) -> None:
    layout = make_layout(read_prompt_list(VBENCH, infos))
    prompts = ["a red square, frozen in time", "a red square", "a blue circle", "A blue circle"]
    assert layout.files == tuple(f"{prompt}-{i}.mp4" for prompt in prompts for i in range(5))
    assert [(g.prompt, g.index) for g in layout.generations] == [(p, i) for p in prompts for i in range(5)]
    assert (
        layout.files_of("imaging_quality")
        == layout.files_of("color")
        == tuple(f"a red square-{i}.mp4" for i in range(5))
    )
    assert layout.folder_of("color") == ""
    assert layout.summary() == "5 entries, 4 prompts, 20 videos"
    assert layout.colliding() == [("A blue circle", "a blue circle")]


def test_more_samples_to_filter_are_those_of_one_dimension(infos: Path) -> None:
    layout = make_layout(read_prompt_list(VBENCH, infos), flickering_samples=25)
    assert len(layout.files) == 20 + 20
    assert layout.files_of("temporal_flickering") == tuple(f"a red square, frozen in time-{i}.mp4" for i in range(25))
    assert layout.samples == {name: 25 if name == "temporal_flickering" else 5 for name in layout.samples}


def test_vbench2_is_a_folder_per_dimension_and_a_video_has_several_names(infos: Path) -> None:
    layout = make_layout(read_prompt_list(VBENCH2, infos))
    first, last = layout.generations[0], layout.generations[19]
    assert first.files == ("Diversity/a red square-0.mp4", "Multi-View_Consistency/a red square-0.mp4")
    assert (last.index, last.files) == (19, ("Diversity/a red square-19.mp4",))
    assert layout.files_of("Complex_Plot") == tuple(f"Complex_Plot/{LONG[:180]}-{i}.mp4" for i in range(3))
    assert LONG[:180].endswith(" ")  # and stays
    assert len(layout.files_of("Human_Anatomy")) == 3  # of a prompt that stands there twice
    assert layout.folder_of("Diversity") == "Diversity"
    assert layout.summary() == "5 entries, 3 prompts, 26 videos under 29 names"
    assert len(layout.files) == len(set(layout.files)) == sum(len(layout.files_of(name)) for name in layout.samples)


def layout_of(benchmark: Benchmark, entries: list[tuple[str, str]], folder: Path) -> Layout:
    (folder / "info.json").write_text(json.dumps([{"prompt_en": p, "dimension": [d]} for p, d in entries]))
    return make_layout(read_prompt_list(benchmark, folder / "info.json"))


@pytest.mark.parametrize(
    ("benchmark", "entries", "message"),
    [
        (VBENCH, [("either/or", "color")], "no file can be named by the prompt 'either/or'"),
        (VBENCH, [("a\0b", "color")], "no file can be named"),
        (VBENCH, [("é" * 121, "color")], "no file can be named"),
        (VBENCH2, [("x/y", "Material")], "no file can be named"),
        (VBENCH2, [("a" * 180 + "b", "Material"), ("a" * 180 + "c", "Material")], "would be the file of two prompts"),
    ],
)
def test_prompts_without_names_of_their_own_are_refused(
    benchmark: Benchmark, entries: list[tuple[str, str]], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        layout_of(benchmark, entries, tmp_path)


def test_what_a_benchmark_does_not_have_is_refused(infos: Path) -> None:
    vbench, vbench2 = (read_prompt_list(each, infos) for each in (VBENCH, VBENCH2))
    with pytest.raises(UserError, match="at least 5 samples, and 4 are given"):
        make_layout(vbench, flickering_samples=4)
    with pytest.raises(UserError, match=r"VBench-2\.0 has no temporal_flickering: leave --flickering-samples out"):
        make_layout(vbench2, flickering_samples=25)
    with pytest.raises(UserError, match="has no dimension 'colour': name one of"):
        make_layout(vbench).files_of("colour")


def test_canonically_equal_names_collide(tmp_path: Path) -> None:
    layout = layout_of(VBENCH, [("caf\u00e9", "color"), ("CAFE\u0301", "color"), ("cafe", "color")], tmp_path)
    assert layout.colliding() == [("CAFE\u0301", "caf\u00e9")]
