"""What holds for every evaluation suite, and for two more that are a single file each."""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from avd.data import CaptionedFile, Video, write_captions, write_video
from avd.evaluation.judging import check_model, judge, judge_samples, make_row, measure_share
from avd.evaluation.records import RecordFolder
from avd.evaluation.rows import Results, Row, read_results, write_results
from avd.evaluation.sampling import Samples, sample_clips
from avd.evaluation.suite import Clip, ClipSuite, Shape
from avd.evaluation.suites import make_suite, suite_class, suite_names
from avd.models.settings import Settings
from avd.report import markdown_table, terminal_table, write_report
from avd.types import UserError
from helpers.added_suites import ADDED, added_suites
from helpers.command import avd
from helpers.painter import WORLD, Painter

__all__ = ["added_suites"]

PROMPTS = Path(__file__).parents[1] / "helpers" / "prompts.txt"
SMALL: dict[str, dict[str, Any]] = {"world": {"clips": 4, "repeats": 2}, "native": {"prompts_file": str(PROMPTS)}}
"""Options that make a suite quick."""

pytestmark = pytest.mark.usefixtures("added_suites")
each_suite = pytest.mark.parametrize("name", [*suite_names(), *ADDED])


def small(name: str) -> ClipSuite:
    """The suite, or a skipped test where it cannot run, or does not judge clip by clip."""
    reason = suite_class(name)(**SMALL.get(name, {})).unavailable()
    if reason is not None:
        pytest.skip(reason)
    suite = make_suite(name, SMALL.get(name, {}))
    if not isinstance(suite, ClipSuite):
        pytest.skip("official code judges its videos, a folder at a time")
    return suite


def sampled(suite: ClipSuite, folder: Path, painter: Painter | None = None) -> Samples:
    return sample_clips(painter or Painter(), suite.prompts(), folder, seed=0, batch=5)


@each_suite
def test_measures_are_declared(name: str) -> None:
    suite = suite_class(name)
    keys = [measure.key for measure in suite.measures]
    assert suite.name == name and keys
    assert len(set(keys)) == len(keys)
    assert not set(keys) & set(Row.model_fields)
    assert all(measure.title and measure.help for measure in suite.measures)


@each_suite
def test_the_declared_measures_are_scored_and_no_others(name: str, tmp_path: Path) -> None:
    suite = small(name)
    row = judge_samples(suite, sampled(suite, tmp_path), name="mine")
    assert list(row.scores) == [name]
    assert list(row.scores[name]) == [measure.key for measure in suite.measures]
    assert any(value is not None for value in row.scores[name].values())
    assert (row.steps, row.network_calls) == (4, 4) and row.seconds_per_video is not None and row.videos > 0


@each_suite
def test_every_prompt_is_answered_and_every_clip_read_once(name: str, tmp_path: Path) -> None:
    suite, painter, read = small(name), Painter(), []
    samples = sampled(suite, tmp_path, painter)
    assert [text for batch in painter.prompts for text in batch] == [prompt.text for prompt in suite.prompts()]

    def recorded(clip: Clip) -> Clip:
        return replace(clip, read=lambda: (read.append(clip.prompt), clip.read())[1])

    judge(suite, map(recorded, samples.clips()), name="mine")
    assert read == list(suite.prompts())
    assert len(set(suite.prompts())) == len(suite.prompts())  # no two ask for the same clip


@each_suite
def test_prompts_are_always_the_same(name: str) -> None:
    assert list(small(name).prompts()) == list(small(name).prompts())


@each_suite
def test_clips_are_held_one_at_a_time(name: str, tmp_path: Path) -> None:
    suite, made, most = small(name), [], 0

    def counted(clip: Clip) -> Clip:
        def read() -> Video:
            nonlocal most
            video = clip.read()
            made.append(weakref.ref(video.frames))
            most = max(most, sum(frames() is not None for frames in made))
            return video

        return replace(clip, read=read)

    judge(suite, map(counted, sampled(suite, tmp_path).clips()), name="mine")
    assert len(made) == len(suite.prompts())
    assert most <= 2  # the one before may live until its name is given to the next


@each_suite
def test_the_clips_it_asks_for_are_not_refused(name: str) -> None:
    suite = small(name)
    check_model(suite, suite.prompts(), Settings(frames=17, height=48, width=48, fps=8), "painter")


@each_suite
def test_a_model_whose_clips_are_refused_is_named(name: str) -> None:
    suite, settings = small(name), Settings(frames=1, height=48, width=48, fps=8)
    assert suite.refusal(Shape.of_model(settings), suite.prompts()[0]) is not None
    with pytest.raises(UserError, match=f"some model makes clips that suite {name} cannot judge: 1 frames"):
        check_model(suite, suite.prompts(), settings, "some model")


@each_suite
def test_records_survive_json_and_scores_do_not_depend_on_where_they_were(name: str, tmp_path: Path) -> None:
    suite = small(name)
    samples = sampled(suite, tmp_path / "samples")
    clips = list(samples.clips())
    for rank in (1, 0):
        measure_share(suite, clips, RecordFolder(tmp_path / "records", suite, rank), rank=rank, size=2)
    records = RecordFolder(tmp_path / "records", suite).wait(clips, lambda done, total: None)
    assert [(record.clip, record.prompt) for record in records] == [(clip.name, clip.prompt) for clip in clips]
    assert make_row(suite, records, name="mine").scores == judge_samples(suite, samples, name="mine").scores


@each_suite
def test_nothing_to_judge_is_a_users_error(name: str) -> None:
    with pytest.raises(UserError, match="no clips"):
        judge(small(name), [], name="mine")


@each_suite
def test_a_clip_that_cannot_be_read_ends_the_judging(name: str, tmp_path: Path) -> None:
    suite = small(name)
    samples = sampled(suite, tmp_path)
    samples.clip_file(1).write_bytes(samples.clip_file(1).read_bytes()[:-7])
    with pytest.raises(UserError, match=r"clip-000001\.safetensors cannot be read"):
        judge_samples(suite, samples, name="mine")


@each_suite
def test_rows_survive_the_file(name: str, tmp_path: Path) -> None:
    suite = small(name)
    results = Results(rows=[judge_samples(suite, sampled(suite, tmp_path / "samples"), name="mine")])
    write_results(tmp_path / "results.json", results)
    again = read_results(tmp_path / "results.json")
    assert again == results
    assert list(again.rows[0].scores[name]) == list(results.rows[0].scores[name])


@each_suite
def test_an_unknown_option_or_value_is_one_line(name: str) -> None:
    with pytest.raises(UserError, match=f"suite {name} has no option colour of moon: choose from") as caught:
        make_suite(name, {"colour of moon": 1})
    assert "\n" not in str(caught.value)


def test_options_may_be_text() -> None:
    assert make_suite("toy", {"words": "5"}) == suite_class("toy")(words=5)
    with pytest.raises(UserError, match="option words of suite toy is 'five'"):
        make_suite("toy", {"words": "five"})


def test_a_suite_that_cannot_run_says_why() -> None:
    with pytest.raises(UserError, match="suite toy cannot run here: it has no words"):
        make_suite("toy", {"words": 0})


def test_an_unknown_suite_is_refused_by_name() -> None:
    with pytest.raises(UserError, match=r"suite 'moon' is not one of 'brightness', .*'toy'.*'world'"):
        suite_class("moon")


@pytest.fixture
def rows(make_row: Callable[..., Row]) -> list[Row]:
    """One judged by the world suite, one by the toy as well."""
    world = make_row(name="world", diversity_colour=0.25)
    toy = make_row(name="both", scores={"toy": {"brightness": 0.25, "clips": 3.0}, **world.scores})
    return [world, toy]


def test_one_file_is_all_that_a_suite_needs_to_be_shown(rows: list[Row], tmp_path: Path) -> None:
    console = Console(width=100)
    with console.capture() as capture:
        console.print(terminal_table(rows[1:]))
    write_report(tmp_path / "report.html", Results(rows=rows), [])
    for text in (capture.get(), markdown_table(rows), (tmp_path / "report.html").read_text()):
        assert "toy: Brightness" in text and "25.0 %" in text and "world: Dynamic degree" in text
    assert "toy: Clips" in (tmp_path / "report.html").read_text()
    assert "toy: Clips" not in capture.get()


def test_one_file_is_all_that_the_command_line_needs(
    tmp_path: Path, clips_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    json_file = tmp_path / "row.json"
    assert avd("evaluate", clips_folder, "--suite", "toy", "--set", "words=1", "--json", json_file) == 0
    (row,) = json.loads(json_file.read_text())["rows"]
    assert row["scores"]["toy"]["clips"] == 2 and row["videos"] == 2
    assert "Brightness" in capfd.readouterr().out
    assert avd("table", json_file) == 0
    assert "| Brightness (as you like) |" in capfd.readouterr().out


@pytest.fixture
def clips_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "clips"
    for i in range(2):
        write_video(folder / f"{i}.mp4", WORLD.clip(i, "heldout").video, 8)
    write_captions(folder / "captions.jsonl", [CaptionedFile(f"{i}.mp4", "anything at all") for i in range(2)])
    return folder
