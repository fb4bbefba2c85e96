"""The loop: a run killed anywhere and resumed ends as one that never was."""

from __future__ import annotations

import json
import os
import re
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from avd.engine import loop, saving
from avd.engine.checkpoint import list_checkpoints
from avd.engine.ema import EMA
from avd.engine.loop import CONTINUE, Decision, Pace, Schedule, UpdateResult, run
from avd.engine.packing import pack_module, pack_optimizer, unpack_module, unpack_optimizer
from avd.engine.randomness import generator_for
from avd.engine.run_folder import RunFolder
from avd.engine.stopping import Between, Heed
from avd.types import UserError

SCHEDULE = Schedule(updates=7, checkpoint_every=2, validate_every=3, sample_every=4)
MOMENTS = ("update", "validate", "sample", "tensors", "log", "replace", "remove", "progress", "export")


class Killed(BaseException):
    """Nothing catches it, like a kill -9."""


class Toy:
    """A small regression with everything a real task has: weights, optimizer, EMA, and a number of its own."""

    def __init__(self, kill_at: tuple[str, int] | None = None) -> None:
        torch.manual_seed(0)
        self.net = nn.Linear(3, 2)
        self.optimizer = torch.optim.AdamW(self.net.parameters(), lr=0.05)
        self.ema = EMA(self.net, 0.99)
        self.total = 0.0
        self.updates: list[int] = []
        self._kill_at = kill_at

    def reach(self, moment: str, n: int) -> None:
        if self._kill_at == (moment, n):
            raise Killed

    def update(self, n: int, between: Between) -> UpdateResult:
        self.reach("update", n)
        x = torch.randn(4, 3, generator=generator_for(0, "toy", n))
        loss = self.net(x).square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.ema.update(self.net, n)
        self.total += loss.item()
        self.updates.append(n)
        return UpdateResult({"loss": loss.item(), "total": self.total})

    def validate(self, n: int) -> dict[str, float]:
        self.reach("validate", n)
        return {"heldout_loss": self.ema.module(torch.ones(1, 3)).square().mean().item()}

    def sample(self, folder: Path, n: int) -> None:
        self.reach("sample", n)
        (folder / f"{n}.json").write_text(json.dumps(self.ema.module.weight.tolist()))

    def tensors(self) -> dict[str, Tensor]:
        self.reach("tensors", len(self.updates))
        modules = pack_module("net", self.net) | pack_module("ema", self.ema.module)
        return modules | pack_optimizer("optimizer", self.optimizer)

    def state(self) -> dict[str, Any]:
        return {"total": self.total}

    def load(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        unpack_module("net", self.net, tensors)
        unpack_module("ema", self.ema.module, tensors)
        unpack_optimizer("optimizer", self.optimizer, tensors)
        self.total = state["total"]

    def export(self, folder: Path) -> None:
        self.reach("export", len(self.updates))
        (folder / "result.json").write_text(json.dumps([self.ema.module.weight.tolist(), self.net.weight.tolist()]))


class TornFolder(RunFolder):
    """Killed in the middle of writing the metrics of one update."""

    def __init__(self, path: Path, torn: int) -> None:
        super().__init__(path, resume=path.exists(), recipe_text="toy")
        self._torn = torn

    def log(self, update: int, values: Mapping[str, float]) -> None:
        if update == self._torn:
            with self.metrics.open("a") as file:
                file.write(f'{{"update": {update}, "lo')
            raise Killed
        super().log(update, values)


def start(path: Path, schedule: Schedule = SCHEDULE, kill: tuple[str, int] | None = None) -> Toy:
    """Begin or continue the run in `path`, killed at a moment of an update if asked to."""
    moment, n = kill or ("", -1)
    folder = TornFolder(path, n if moment == "log" else -1)
    task = Toy(kill)

    def progress(done: int, updates: int, metrics: Mapping[str, float], left: float | None) -> None:
        task.reach("progress", done)

    def replace(source: Path, target: Path) -> None:
        step, rest = re.fullmatch(r"(?:step-(\d+))?(.*)", Path(target).name).groups()  # type: ignore[union-attr]
        if step:
            task.reach("remove" if rest else "replace", int(step))
        os.rename(source, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "replace", replace)
        run(task, folder, schedule, progress)
    return task


def lines(path: Path) -> list[dict[str, float]]:
    """The metrics, without times."""
    found = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds"} for line in found]


def outcome(path: Path) -> tuple[object, ...]:
    """All that a run leaves: result, metrics, samples, and the last checkpoint's bytes."""
    newest = list_checkpoints(path / "checkpoints")[-1]
    samples = {p.name: p.read_text() for p in (path / "samples").iterdir()}
    saved = {p.name: p.read_bytes() for p in newest.iterdir()}
    return (path / "result.json").read_text(), lines(path), samples, newest.name, saved


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[object, ...]:
    """What a run that is never killed leaves."""
    path = tmp_path_factory.mktemp("uninterrupted") / "run"
    assert start(path).updates == list(range(7))
    return outcome(path)


@settings(deadline=None, max_examples=60)
@given(kills=st.lists(st.tuples(st.sampled_from(MOMENTS), st.integers(0, 7)), max_size=4))
def test_a_run_killed_anywhere_and_resumed_is_the_run_never_killed(
    uninterrupted: tuple[object, ...], kills: list[tuple[str, int]]
) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "run"
        for kill in kills:
            try:
                start(path, kill=kill)
            except Killed:
                continue
        start(path)
        assert outcome(path) == uninterrupted


@pytest.mark.parametrize("moment", MOMENTS)
def test_every_moment_is_reached(tmp_path: Path, moment: str) -> None:
    """The property above would be empty if the kills never happened."""
    n = {"update": 4, "log": 4, "validate": 6, "export": 7}.get(moment, 4)
    with pytest.raises(Killed):
        start(tmp_path / "run", kill=(moment, n))


def test_a_resumed_run_starts_at_the_newest_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        start(tmp_path / "run", kill=("update", 6))
    newest = list_checkpoints(tmp_path / "run" / "checkpoints")[
        -1
    ]  # the last, or the one before if that was not complete
    assert newest.name in ("step-0000004", "step-0000006")
    assert start(tmp_path / "run").updates == [4, 5, 6][int(newest.name[-1]) - 4 :]


class Onlooker:
    """A watch that lets everything be."""

    def begin(self, updates: int) -> None: ...

    def observe(self, result: UpdateResult) -> None: ...

    def measure(self, updates: int, heed: Heed) -> None: ...

    def after_update(self, updates: int, metrics: Mapping[str, float], measurement: None) -> Decision:
        return CONTINUE

    def roll_back(self, updates: int) -> None: ...

    def complete(self) -> None: ...

    def state(self) -> dict[str, Any]:
        return {}

    def load(self, state: Mapping[str, Any]) -> None: ...


def test_a_watch_completes_what_it_keeps_while_the_run_holds_its_folder(tmp_path: Path) -> None:
    path, refused = tmp_path / "run", []

    class Keeper(Onlooker):
        def complete(self) -> None:
            assert (path / "result.json").exists()
            with pytest.raises(UserError) as caught:
                RunFolder(path, resume=True, recipe_text="").lock()
            refused.append(str(caught.value))

    run(Toy(), RunFolder(path, resume=False, recipe_text=""), Schedule(1, 0), lambda *_: None, Keeper())
    assert len(refused) == 1
    RunFolder(path, resume=True, recipe_text="").lock()


def test_training_resumes_while_a_checkpoint_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    later, waited = threading.Event(), []
    write_pieces, update = saving.write_pieces, Toy.update

    def slow(folder: Path, step: int, *rest: Any) -> int:
        if step == 2:
            waited.append(later.wait(timeout=30))  # until the update after the checkpoint has begun
        return write_pieces(folder, step, *rest)

    def noted(self: Toy, n: int, between: Between) -> UpdateResult:
        if n == 2:
            later.set()
        return update(self, n, between)

    monkeypatch.setattr(saving, "write_pieces", slow)
    monkeypatch.setattr(Toy, "update", noted)
    folder = RunFolder(tmp_path / "run", resume=False, recipe_text="")
    run(Toy(), folder, Schedule(updates=4, checkpoint_every=2), lambda *_: None, Onlooker())
    assert waited == [True]


def test_a_finished_run_resumes_to_more_updates(tmp_path: Path) -> None:
    start(tmp_path / "long", Schedule(updates=9, checkpoint_every=2))
    start(tmp_path / "short", Schedule(updates=5, checkpoint_every=2))
    assert start(tmp_path / "short", Schedule(updates=9, checkpoint_every=2)).updates == [5, 6, 7, 8]
    assert outcome(tmp_path / "short") == outcome(tmp_path / "long")


def test_a_finished_run_started_again_does_nothing_new(tmp_path: Path) -> None:
    start(tmp_path / "run")
    before = outcome(tmp_path / "run")
    assert start(tmp_path / "run").updates == []
    assert outcome(tmp_path / "run") == before


def test_the_schedule_is_kept(tmp_path: Path) -> None:
    start(tmp_path / "run")
    assert [line["update"] for line in lines(tmp_path / "run") if "heldout_loss" in line] == [2, 5, 6]
    assert sorted(p.name for p in (tmp_path / "run" / "samples").iterdir()) == ["4.json", "7.json"]
    assert [p.name for p in list_checkpoints(tmp_path / "run" / "checkpoints")] == ["step-0000006", "step-0000007"]


def test_a_zero_in_the_schedule_is_never(tmp_path: Path) -> None:
    start(tmp_path / "run", Schedule(updates=3, checkpoint_every=0))
    assert list_checkpoints(tmp_path / "run" / "checkpoints") == []
    assert list((tmp_path / "run" / "samples").iterdir()) == []
    assert [set(line) for line in lines(tmp_path / "run")] == [{"update", "loss", "total"}] * 3


def test_checkpoints_and_samples_are_also_due_by_the_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Updates of 25 s each: a minute is over after the third, and again after the sixth, unless one was due before."""
    now = [0.0]
    update = Toy.update

    def slow(self: Toy, n: int, between: Between) -> UpdateResult:
        now[0] += 25.0
        return update(self, n, between)

    monkeypatch.setattr(Toy, "update", slow)
    monkeypatch.setattr(loop.time, "monotonic", lambda: now[0])
    start(tmp_path / "clock", Schedule(7, 0, keep_checkpoints=9, checkpoint_minutes=1, sample_minutes=2))
    assert steps(tmp_path / "clock") == [3, 6, 7]
    assert sorted(p.name for p in (tmp_path / "clock" / "samples").iterdir()) == ["5.json", "7.json"]
    start(tmp_path / "both", Schedule(7, 4, keep_checkpoints=9, checkpoint_minutes=1))
    assert steps(tmp_path / "both") == [3, 4, 7]


def steps(path: Path) -> list[int]:
    return [int(checkpoint.name[-7:]) for checkpoint in list_checkpoints(path / "checkpoints")]


def test_progress_counts_up_and_tells_the_time_left(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    left: list[float | None] = []

    def progress(done: int, updates: int, metrics: Mapping[str, float], seconds: float | None) -> None:
        seen.append((done, updates))
        left.append(seconds)

    run(Toy(), RunFolder(tmp_path / "run", resume=False, recipe_text=""), Schedule(3, 0), progress)
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert left[0] is not None and left[0] > 0 and left[-1] == 0


def test_a_damaged_checkpoint_stops_the_run_and_moving_it_away_resumes_from_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "run"
    start(path)
    before = outcome(path)
    newest = list_checkpoints(path / "checkpoints")[-1]
    (newest / "tensors-00000-of-00001.safetensors").write_bytes(b"damaged")
    with pytest.raises(UserError, match="move it away"):
        start(path)
    newest.rename(tmp_path / "moved")
    assert start(path).updates == [6]
    assert outcome(path) == before


def test_pace_is_a_running_mean() -> None:
    pace = Pace()
    assert pace.left(3) is None
    pace.add(2.0)
    assert pace.left(3) == 6.0
    pace.add(4.0)
    assert pace.left(10) == pytest.approx(21.0)
