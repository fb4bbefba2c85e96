"""Progress: what is left while a job runs, and how long it took at its end, in a log and in a terminal."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
from rich.console import Console

from avd import ui


class Clock:
    """Time that passes when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(ui.time, "monotonic", clock.monotonic)
    return clock


@pytest.fixture(params=[False, True], ids=["log", "terminal"])
def shown(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """What is printed where bars can be drawn, and where they cannot."""
    text = io.StringIO()
    console = Console(file=text, force_terminal=request.param, width=100, color_system=None)
    monkeypatch.setattr(ui, "err", console)
    yield text


def last_line(text: io.StringIO, title: str) -> str:
    return next(line for line in reversed(text.getvalue().splitlines()) if title in line)


def test_a_finished_job_says_how_long_it_took(shown: io.StringIO, clock: Clock) -> None:
    with ui.bars() as bar:
        progress = bar("distilling")
        for done in range(1, 81):
            clock.now += 151 / 80
            progress(done, 80, {"loss": 0.25}, (80 - done) * 2.0)
    line = last_line(shown, "distilling")
    assert "80/80" in line and "took 2:31" in line and "loss 0.25" in line and "left" not in line


def test_a_job_of_one_piece_took_the_time_of_that_piece(shown: io.StringIO, clock: Clock) -> None:
    with ui.bars() as bar:
        progress = bar("generating")
        clock.now += 7
        progress(1, 1)
    line = last_line(shown, "generating")
    assert "1/1" in line and "took 0:07" in line and "left" not in line


def test_a_job_is_timed_from_the_end_of_the_one_before(shown: io.StringIO, clock: Clock) -> None:
    with ui.bars() as bar:
        encoding, training = bar("encoding clips"), bar("training")
        clock.now += 65
        encoding(16, 16)
        clock.now += 3600
        training(1, 2)
        clock.now += 10
        training(2, 2)
    assert "took 1:05" in last_line(shown, "encoding clips")
    assert "took 1:00:10" in last_line(shown, "training")


def test_a_running_job_says_what_is_left(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    text = io.StringIO()
    monkeypatch.setattr(ui, "err", Console(file=text, width=100))
    with ui.bars() as bar:
        progress = bar("training")
        clock.now += 10
        progress(1, 4)  # nothing is known of the pace yet
        clock.now += 20
        progress(2, 4)
        progress(3, 4)  # too soon for another line
    assert text.getvalue().splitlines() == ["training: 1/4, ? left", "training: 2/4, 0:40 left"]


@pytest.mark.parametrize("rank", ["x", "", "-1", "1.5", "3"])
def test_a_strange_rank_breaks_nothing_that_is_no_concern_of_ranks(rank: str) -> None:
    command = [sys.executable, "-m", "avd", "--version"]
    done = subprocess.run(command, env=os.environ | {"RANK": rank}, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
