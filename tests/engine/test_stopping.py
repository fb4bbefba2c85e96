"""Runs that are asked to end: after an update, or within one that takes longer than they have."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from avd.distillation.step import TrainingStep
from avd.engine import stopping
from avd.engine.checkpoint import list_checkpoints
from avd.engine.loop import UpdateResult
from avd.engine.ranks import SINGLE_PROCESS
from avd.engine.stopping import Between, StopRequest, Stops, UpdateCutShort, stop_requests
from avd.types import Stopped
from helpers.distill_run import distill, small_recipe, small_task


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_asked_to_end_saves_after_the_update_and_says_how_to_resume(
    tmp_path: Path, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = distill(tmp_path / "straight", 4)
    task = small_task(small_recipe())
    update = task.update

    def interrupted(n: int, between: Between) -> UpdateResult:
        if n == 2:
            os.kill(os.getpid(), number)
        return update(n, between)

    monkeypatch.setattr(task, "update", interrupted)
    with pytest.raises(Stopped, match=rf"stopped by {number.name} after update 3.*--resume") as stopped:
        distill(tmp_path / "run", 4, task=task)
    assert stopped.value.code == 128 + number
    assert list_checkpoints(tmp_path / "run" / "checkpoints")[-1].name == "step-0000003"
    resumed = distill(tmp_path / "run", 4, resume=True)
    expected = straight.tensors()
    assert all(torch.equal(v, expected[k]) for k, v in resumed.tensors().items())


def test_a_second_request_is_obeyed_at_once() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it for what it runs in the background
    with pytest.raises(KeyboardInterrupt), stop_requests() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
        assert stop.signal == signal.SIGINT
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_process_asked_to_end_exits_with_its_state_saved(tmp_path: Path) -> None:
    """As a scheduler does it, from outside."""
    run = tmp_path / "run"
    code = f"import pathlib; from helpers.distill_run import distill; distill(pathlib.Path({str(run)!r}), 1_000_000)"
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    metrics = run / "metrics.jsonl"
    while not metrics.exists() or not metrics.read_text():
        assert process.poll() is None, "the run ended by itself"
        time.sleep(0.01)
    process.terminate()
    _, errors = process.communicate(timeout=120)
    assert "Stopped: stopped by SIGTERM" in errors
    done = [json.loads(line)["update"] for line in metrics.read_text().splitlines()]
    assert list_checkpoints(run / "checkpoints")[-1].name == f"step-{done[-1] + 1:07d}"


# -- updates that take longer than the grace ----------------------------------------------------------------------


class Clock:
    """A clock that a test moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(stopping.time, "perf_counter", lambda: self.now)


def requested() -> StopRequest:
    request = StopRequest()
    request.signal = signal.SIGTERM
    return request


def update(stops: Stops, clock: Clock, seconds: float) -> bool:
    """An update of two halves, the first of which ends with a call of `between`; whether it was cut short."""
    try:
        with stops.updating():
            clock.now += seconds / 2
            stops.between(0.5)
            clock.now += seconds / 2
    except UpdateCutShort:
        return True
    stops.after_update()
    return False


@pytest.mark.parametrize(("seconds", "cut"), [(20, False), (29, False), (31, True), (400, True)])
def test_the_first_update_is_cut_short_by_what_it_has_taken_so_far(
    monkeypatch: pytest.MonkeyPatch, seconds: float, cut: bool
) -> None:
    assert update(Stops(requested(), SINGLE_PROCESS, 30), Clock(monkeypatch), seconds) == cut


@pytest.mark.parametrize(
    ("before", "cut"), [([40], True), ([20], False), ([20, 40, 20], True), ([400] + [20] * 8, False)]
)
def test_later_updates_are_cut_short_by_the_longest_of_the_last(
    monkeypatch: pytest.MonkeyPatch, before: list[float], cut: bool
) -> None:
    """Whatever this one takes: its parts may be of different lengths."""
    request, clock = StopRequest(), Clock(monkeypatch)
    stops = Stops(request, SINGLE_PROCESS, 30)
    assert not any(update(stops, clock, seconds) for seconds in before)
    request.signal = signal.SIGTERM
    assert update(stops, clock, 25) == cut


def test_ranks_exchange_nothing_within_updates_that_are_short(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, exchanges = Clock(monkeypatch), []

    class Counted(type(SINGLE_PROCESS)):  # type: ignore[misc]
        def all_max(self, values: torch.Tensor) -> torch.Tensor:
            exchanges.append(clock.now)
            return values

    stops = Stops(StopRequest(), Counted(), 30)
    for _ in range(3):
        update(stops, clock, 10)
    assert exchanges == [5, 10, 20, 30]  # within the first update, and after each


@pytest.mark.parametrize("shared", [True, False])
def test_an_update_can_be_cut_short_after_each_of_its_parts(shared: bool) -> None:
    shares: list[float] = []
    recipe = small_recipe(f"rollout.shared={str(shared).lower()}", "fake_score.updates=3")
    small_task(recipe).update(0, shares.append)
    assert shares == ([0.25, 0.5, 0.75] if shared else [0.25, 0.5, 0.625, 0.75, 0.875])


def test_a_run_stopped_within_an_update_says_what_is_lost_and_resumes_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight, run = distill(tmp_path / "straight", 6), tmp_path / "run"
    done = [0]
    update_auxiliary = TrainingStep._update_auxiliary

    def interrupted(self: TrainingStep, *given: Any) -> None:
        done[0] += 1
        if done[0] == 3 * 5 + 2:  # the second of the fake score's five updates, in the fourth update
            os.kill(os.getpid(), signal.SIGTERM)
        update_auxiliary(self, *given)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingStep, "_update_auxiliary", interrupted)
        with pytest.raises(Stopped) as stopped:
            distill(run, 6, recipe=small_recipe("training.stop_grace=0"))
    assert done == [17] and stopped.value.code == 128 + signal.SIGTERM
    assert re.search(r"within update 4: .*step-0000002 is left in .*, updates lost: 1; ", str(stopped.value))
    assert [path.name for path in list_checkpoints(run / "checkpoints")] == ["step-0000002"]
    resumed, expected = distill(run, 6, resume=True), straight.tensors()
    assert all(torch.equal(value, expected[name]) for name, value in resumed.tensors().items())
