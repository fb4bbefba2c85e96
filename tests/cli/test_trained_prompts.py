"""`avd evaluate` says which of a suite's prompts the model was trained on, over all the runs behind it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from avd.evaluation.rows import read_results
from avd.evaluation.suites.world import WorldSuite
from avd.evaluation.trained_prompts import describe_overlap, find_overlap
from avd.world import World
from helpers.command import avd

PROMPTS = ["A red ball, drifting left!", "a fox in snow", "a fox in snow", "a blue ring rising"]
QUICK = ("--set", "monitors.every=0", "--set", "training.sample_every=0", "--updates", 1)
DMD = ("--set", "objective.regression.weight=0", "--set", "objective.temporal.weight=0")


def distill(output: str, *options: object) -> None:
    assert avd("distill", "small.yaml", "--output", output, *QUICK, *options) == 0


@pytest.fixture(scope="module", autouse=True)
def runs(place: Path) -> Path:
    """`world` learnt from the built-in world, `videos` from a cache, `second` began with its student and learnt from a
    list of prompts."""
    assert avd("world", "render", "--output", "clips", "--count", 2, "--size", 16) == 0
    captions = place / "clips" / "captions.jsonl"
    first = captions.read_text().splitlines()[0].partition('"caption": "')[2].partition('"')[0]
    captions.write_text(captions.read_text().replace(first, "a red BALL drifting left"))
    (place / "prompts.txt").write_text("a blue ring: rising\na green square\n")
    assert avd("prepare", "clips", "--model", "tiny", "--output", "cache") == 0
    assert avd("prepare", "--prompts", "prompts.txt", "--model", "tiny", "--output", "prompts") == 0
    distill("world")
    distill("videos", "--data", "cache")
    distill("second", *DMD, "--set", "data.prompts=prompts", "--set", "student.start=videos/student")
    return place


def shared(model: str) -> tuple[int, int, str | None]:
    found = find_overlap(model, PROMPTS)
    assert found is not None and found.unread == []
    return found.prompts, found.shared, found.example


def test_captions_and_lists_of_all_runs_behind_a_student_count() -> None:
    assert shared("videos/student") == (3, 1, PROMPTS[0])
    assert shared("second/student") == (3, 2, PROMPTS[0])
    assert shared("world/student") == (3, 0, None)


def test_the_best_student_and_the_run_itself_are_of_the_run(tmp_path: Path) -> None:
    shutil.copytree("videos", tmp_path / "run")
    (tmp_path / "run" / "best").mkdir()
    (tmp_path / "run" / "student").rename(tmp_path / "run" / "best" / "student")
    assert shared(str(tmp_path / "run" / "best" / "student")) == shared(str(tmp_path / "run")) == (3, 1, PROMPTS[0])


def test_a_model_of_no_run_has_no_overlap(tmp_path: Path) -> None:
    shutil.copytree("videos/student", tmp_path / "student")
    for model in ("tiny", "wan-mini", str(tmp_path / "student")):
        assert find_overlap(model, PROMPTS) is None


def test_texts_in_place_of_prompts_count_for_their_prompts() -> None:
    rewritten = {"a lamp": PROMPTS[0], PROMPTS[0]: "at length, of the same"}
    found = find_overlap("videos/student", ["a lamp", "a cave", PROMPTS[0]], rewritten)
    assert found is not None and (found.prompts, found.shared, found.example) == (3, 2, "a lamp")


def test_a_model_that_is_no_longer_there_is_named(tmp_path: Path) -> None:
    found = find_overlap(str(tmp_path / "gone"), PROMPTS)
    assert found is not None and (found.shared, found.unread) == (0, [f"{tmp_path / 'gone'} is no longer there"])
    assert find_overlap("owner/model", PROMPTS) is None


@pytest.fixture
def cache(place: Path, tmp_path: Path) -> Iterator[Path]:
    """The cache's path, with the cache moved away from it for one test."""
    Path("cache").rename(tmp_path / "kept")
    yield place / "cache"
    shutil.rmtree("cache", ignore_errors=True)
    (tmp_path / "kept").rename("cache")


@pytest.mark.parametrize("change", ["moved", "other"])
def test_data_that_are_gone_or_others_are_not_compared(change: str, cache: Path) -> None:
    if change == "other":
        assert avd("prepare", "clips", "--model", "tiny", "--output", cache, "--dtype", "bfloat16") == 0
    found = find_overlap("second/student", PROMPTS)
    assert found is not None and (found.shared, found.example) == (1, PROMPTS[3])  # of the list, which is there
    (reason,) = found.unread
    assert ("no longer those that the run was trained on" in reason) == (change == "other"), reason
    first, second = describe_overlap(found, "mine")
    assert first.endswith("1 of the 3 different prompts of suite mine, such as: a blue ring rising")
    assert second == f"whether the model was trained on prompts of suite mine is not fully known: {reason}"


def test_the_command_says_it_first_and_the_row_keeps_it(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The world's captions have few words, so some stand in training too, for other scenes."""
    distill("long", "--set", "data.world_clips=300")
    options = ("--clips", 40, "--repeats", 0, "--set", "size=16", "--steps", 1)
    capfd.readouterr()
    assert avd("evaluate", "long/student", "--json", "row.json", *options) == 0
    suite, world = WorldSuite(clips=40, repeats=0, size=16), World(size=16)
    trained = {world.describe(i)[1].text for i in range(300)}
    judged = {prompt.text for prompt in suite.prompts()}
    assert judged & trained
    (row,) = read_results(Path("row.json")).rows
    assert row.overlap is not None and row.overlap.unread == []
    assert (row.overlap.prompts, row.overlap.shared) == (len(judged), len(judged & trained))
    error = " ".join(capfd.readouterr().err.split())
    line = f"trained on {len(judged & trained)} of the {len(judged)} different prompts of suite world, such as: "
    assert error.index(line) < error.index("sampling student: ")
    assert avd("evaluate", "tiny", "--json", "tiny.json", *options) == 0
    assert read_results(Path("tiny.json")).rows[0].overlap is None
