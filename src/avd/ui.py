"""What a person sees while a command works."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
)


def _is_other_rank(rank: str) -> bool:
    """Whether a rank says that another process speaks for all. One that is no number is refused where it matters."""
    return rank.isdecimal() and rank.strip("0") != ""


_OTHERS = _is_other_rank(os.environ.get("RANK") or os.environ.get("SLURM_PROCID", "0"))
"""Whether this is another process than the first that torchrun or srun started, which speaks for all."""
out = Console(quiet=_OTHERS)
"""Results."""
err = Console(stderr=True, quiet=_OTHERS)
"""Progress and errors."""

_METRICS = 4
"""Metrics shown beside a bar; the metrics file has them all."""
_PATIENCE = 2.0
"""Seconds that torchrun takes at most to end all processes after one has failed."""
_LINE_EVERY = 15.0
"""Seconds between lines where the terminal cannot draw a bar."""


class Stopwatch:
    """When the job that is now under way began: with the block of bars, or at the end of the job before it."""

    def __init__(self) -> None:
        self.began = time.monotonic()

    def restart(self) -> None:
        self.began = time.monotonic()


class Bar:
    """One job's progress: a live bar in a terminal, a line every few seconds in a log.

    Jobs of one block follow one another and share a `stopwatch`. The last line says how long the job took.
    """

    def __init__(self, title: str, progress: Progress | None, stopwatch: Stopwatch) -> None:
        self.title, self._progress, self._stopwatch = title, progress, stopwatch
        self._task: TaskID | None = None
        self._first = self._spoke = math.nan
        self._done_before = 0

    def __call__(
        self, done: int, total: int, metrics: Mapping[str, float] | None = None, left: float | None = None
    ) -> None:
        """`left` is the seconds left, estimated from the pace so far if not given."""
        now = time.monotonic()
        if math.isnan(self._first):  # the bar appears with its first call
            self._first, self._spoke, self._done_before = now, now - _LINE_EVERY, done
            if self._progress is not None:
                self._task = self._progress.add_task(self.title, note="", when="")
        if left is None and done > self._done_before:
            left = (now - self._first) / (done - self._done_before) * (total - done)
        passed, finished = now - self._stopwatch.began, done == total
        when = f"took {_clock(passed)}" if finished else f"{_clock(left)} left"
        note = "  ".join(f"{k} {v:.4g}" for k, v in islice((metrics or {}).items(), _METRICS))
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=done, total=total, note=note, when=when)
        elif now - self._spoke >= _LINE_EVERY or finished:
            self._spoke = now
            err.print(f"{self.title}: {done}/{total}, {when}  {note}".rstrip(), highlight=False, soft_wrap=True)
        if finished:
            self._stopwatch.restart()


@contextmanager
def bars() -> Iterator[Callable[[str], Bar]]:
    """Makes `Bar`s by title, for the duration of a block; a terminal shows them under one another."""
    stopwatch = Stopwatch()
    if not err.is_terminal:
        yield lambda title: Bar(title, None, stopwatch)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("[cyan]{task.fields[when]}"),
        TextColumn("[dim]{task.fields[note]}"),
    )
    with Progress(*columns, console=err) as progress:
        yield lambda title: Bar(title, progress, stopwatch)


def say(text: str) -> None:
    """A line about what is going on."""
    err.print(text, highlight=False, markup=False, soft_wrap=True)


def fail(message: str) -> None:
    """Say in one line why the command ends.

    Another process than the first says it too, if the first has not ended them all meanwhile by failing alike.
    """
    if _OTHERS:
        time.sleep(_PATIENCE)
    line = "avd: " + " ".join(message.split())
    Console(stderr=True).print(line, style="red", highlight=False, markup=False, soft_wrap=True)


def _clock(seconds: float | None) -> str:
    if seconds is None:
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
