"""Decoding in several processes, in the order of one.

Job i goes to process i mod N, which sends its windows down a pipe. The pipe holds one window at most, so a process that
is ahead waits, and memory does not grow with the set. What arrives, and in which order, does not depend on N.

A decoder that crashes takes its process with it; the file it was at is refused and a new process continues.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from avd.data.video.reading import ReadOptions, RefusedWindow, VideoError, Window, read_windows
from avd.data.video.sources import VideoSource

_START = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"

Outcome = Window | RefusedWindow | VideoError
Outcomes = Iterator[Outcome]
"""Windows of a video, taken or refused; a `VideoError`, if any, comes last."""


@dataclass(frozen=True)
class Job:
    """A video to read; of its windows, those that start `after` so many seconds, if that is given."""

    source: VideoSource
    after: float | None = None


def decoded(jobs: Sequence[Job], reading: ReadOptions, workers: int) -> Generator[Outcomes, None, None]:
    """The outcomes of each job, in order, read by `workers` processes, or by this one if that is 0.

    Each job's outcomes must be taken to their end before the next job's. Closing the iterator ends the processes.
    """
    if workers == 0 or not jobs:
        for job in jobs:
            yield _outcomes(job, reading)
        return
    pool: list[_Worker] = []
    try:
        pool += (_Worker(reading) for _ in range(min(workers, len(jobs))))
        for worker, job in zip(pool, jobs, strict=False):
            worker.give(job)
        for number in range(len(jobs)):
            worker = pool[number % len(pool)]
            if number + len(pool) < len(jobs):  # known ahead, so that the process never waits for it
                worker.give(jobs[number + len(pool)])
            yield worker.next_result()
    finally:
        for worker in pool:
            worker.stop()


def _outcomes(job: Job, reading: ReadOptions) -> Outcomes:
    try:
        yield from read_windows(job.source, reading, job.after)
    except VideoError as error:
        yield error


@dataclass(frozen=True)
class _Announced:
    """Announces a window, whose frames follow as bytes."""

    start: float
    source_seconds: float
    repeated: int
    shape: tuple[int, ...]


class _Worker:
    """A process that reads videos, and the jobs it has been given and has not finished."""

    def __init__(self, reading: ReadOptions) -> None:
        self._reading = reading
        self._given: deque[Job] = deque()
        self._start()

    def give(self, job: Job) -> None:
        self._given.append(job)
        self._send(job)

    def next_result(self) -> Outcomes:
        """The outcomes of the oldest job."""
        try:
            while (message := self._connection.recv()) is not None:
                if isinstance(message, _Announced):
                    frames = np.empty(message.shape, np.uint8)
                    self._connection.recv_bytes_into(frames.data.cast("B"))
                    yield Window(message.start, frames, message.source_seconds, message.repeated)
                elif isinstance(message, RefusedWindow):
                    yield message
                else:
                    source, reason, detail = message
                    yield VideoError(source, reason, detail)
            self._given.popleft()
        except (EOFError, OSError):
            job = self._given.popleft()
            self.stop()
            self._start()
            for waiting in self._given:
                self._send(waiting)
            yield VideoError(job.source.name, "crashed", "the decoder crashed on it, or was killed")

    def stop(self) -> None:
        self._connection.close()
        self._process.kill()
        self._process.join()

    def _start(self) -> None:
        context: Any = multiprocessing.get_context(_START)
        if _START == "forkserver":
            context.set_forkserver_preload([__name__])  # so that the libraries are loaded once
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, self._reading), daemon=True)
        # Ctrl-C reaches every process of a terminal; the parent is to end these. A blocked signal is inherited as such.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()

    def _send(self, job: Job) -> None:
        with suppress(OSError):  # it has crashed on the job before; `next_result` will find out
            self._connection.send(job)


def _serve(connection: Connection, reading: ReadOptions) -> None:
    """Read one job after the other until the parent is gone."""
    try:
        while True:
            job: Job = connection.recv()
            for outcome in _outcomes(job, reading):
                if isinstance(outcome, VideoError):
                    connection.send((job.source.name, outcome.reason, outcome.detail))
                elif isinstance(outcome, RefusedWindow):
                    connection.send(outcome)
                else:
                    shape = outcome.frames.shape
                    connection.send(_Announced(outcome.start, outcome.source_seconds, outcome.repeated, shape))
                    connection.send_bytes(outcome.frames.data.cast("B"))
            connection.send(None)
    except (EOFError, OSError):
        return
