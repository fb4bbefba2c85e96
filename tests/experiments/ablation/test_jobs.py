"""Jobs of a folder: each done once, in the order of what they need, whoever does them."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from avd.experiments import Bars, Say
from avd.experiments.ablation import jobs
from avd.experiments.ablation.jobs import AblationJob, work
from avd.files import FolderLock
from avd.types import UserError
from helpers.killing import in_forks


@dataclass(frozen=True)
class Write:
    """Adds a line to its file, or fails."""

    folder: Path
    needs: Sequence[AblationJob] = ()
    fails: bool = False

    @property
    def title(self) -> str:
        return self.folder.name

    @property
    def file(self) -> Path:
        return self.folder / "done"

    def is_done(self) -> bool:
        return self.file.exists()

    def do(self, bars: Bars, say: Say) -> None:
        assert all(need.is_done() for need in self.needs)
        if self.fails:
            with (self.folder / "tries").open("a") as file:
                file.write("one\n")
            raise UserError("it cannot be done")
        with self.file.open("a") as file:
            file.write(f"{os.getpid()}\n")


def bars() -> Any:
    return nullcontext(lambda title: None)


def do_all(found: Sequence[AblationJob], after: list[int] | None = None) -> None:
    work(found, bars, lambda line: None, after=lambda: None if after is None else after.append(1))


def test_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    first = Write(tmp_path / "first")
    second, after = Write(tmp_path / "second", (first,)), []
    do_all([first, second, second], after)
    do_all([first, second])
    assert [len(job.file.read_text().splitlines()) for job in (first, second)] == [1, 1] and len(after) == 2


def test_a_failure_costs_only_what_needs_it(tmp_path: Path) -> None:
    bad = Write(tmp_path / "bad", fails=True)
    needing, other = Write(tmp_path / "needing", (bad,)), Write(tmp_path / "other")
    with pytest.raises(UserError, match="bad: it cannot be done"):
        do_all([bad, needing, other])
    assert other.is_done() and not needing.is_done()


def test_a_failure_passes_down_a_chain_and_is_tried_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(seconds: float) -> None:
        raise AssertionError("there is nothing to wait for")

    monkeypatch.setattr(jobs.time, "sleep", refuse)
    first = Write(tmp_path / "first", fails=True)
    second = Write(tmp_path / "second", (first,))
    third = Write(tmp_path / "third", (second,))
    with pytest.raises(UserError, match=r"^first: it cannot be done$"):
        do_all([first, first, second, third, third])
    assert (first.folder / "tries").read_text() == "one\n"


def test_two_processes_do_every_job_once(tmp_path: Path) -> None:
    found = [Write(tmp_path / str(i)) for i in range(20)]
    assert in_forks([lambda: do_all(found) or 0] * 2) == [0, 0]
    assert [len(job.file.read_text().splitlines()) for job in found] == [1] * 20


def test_what_another_holds_is_passed_over_and_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "_POLL", 0.01)
    held, free = Write(tmp_path / "held"), Write(tmp_path / "free")
    held.folder.mkdir()
    lock = FolderLock(held.folder, "held")
    lock.acquire()
    worker = threading.Thread(target=do_all, args=([held, free],))
    worker.start()
    while not free.is_done():
        pass
    assert not held.is_done()
    lock.release()  # as if its process had been killed
    worker.join(timeout=10)
    assert held.is_done()
