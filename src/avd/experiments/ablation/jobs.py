"""Jobs of a folder, done by any number of processes side by side, each once.

A job has a folder, which the process that does it locks. So a process passes over what another one does, comes back to
it when nothing else is left, and takes over where that one was killed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from avd.experiments import Bars, Say
from avd.files import FolderInUse, FolderLock
from avd.types import UserError

_POLL = 2.0
"""Seconds between looks at what other processes have done."""
_Key = tuple[str, Path]


class AblationJob(Protocol):
    """A piece of work that leaves something on disk, by which it is known to be done."""

    @property
    def title(self) -> str: ...

    @property
    def folder(self) -> Path:
        """What is locked meanwhile; jobs may share one."""
        ...

    @property
    def needs(self) -> Sequence[AblationJob]:
        """Jobs that must be done before; they stand earlier in the list."""
        ...

    def is_done(self) -> bool: ...

    def do(self, bars: Bars, say: Say) -> None:
        """Do it, from where it was stopped. Raises UserError for what only this job suffers from."""
        ...


def work(jobs: Sequence[AblationJob], bars: Bars, say: Say, after: Callable[[], object] = lambda: None) -> None:
    """Return when all jobs are done, by this process or by others; `after` is called after each of this process.

    A job that fails keeps only those from being done that need it, at any remove: the first failure is raised as a
    UserError at the end.
    """
    left, lost, failures = list(jobs), set[_Key](), dict[_Key, UserError]()
    while left:
        moved = False
        for job in list(left):
            if job.is_done() or _key(job) in lost:
                left.remove(job)
                moved = True
            elif any(_key(need) in lost for need in job.needs):
                left.remove(job)
                lost.add(_key(job))
                moved = True
            elif all(need.is_done() for need in job.needs):
                finished = _try(job, bars, say, failures)
                lost |= failures.keys()
                moved |= finished
                if finished:
                    left.remove(job)
                    after()
        if left and not moved:
            time.sleep(_POLL)
    if failures:
        (title, _), error = next(iter(failures.items()))
        others = f" ({len(failures) - 1} others failed too)" if len(failures) > 1 else ""
        raise UserError(f"{title}: {error}{others}")


def _key(job: AblationJob) -> _Key:
    """What tells jobs apart: trials share titles, and a run and its row a folder."""
    return job.title, job.folder


def _try(job: AblationJob, bars: Bars, say: Say, failures: dict[_Key, UserError]) -> bool:
    """Do a job; False where another process is at it."""
    job.folder.mkdir(parents=True, exist_ok=True)
    lock = FolderLock(job.folder, str(job.folder))
    try:
        lock.acquire()
    except FolderInUse:
        return False
    try:
        if not job.is_done():
            job.do(bars, say)
    except FolderInUse:  # something else than an ablation writes there
        return False
    except UserError as error:
        say(f"{job.title} failed: {error}")
        failures[_key(job)] = error
    finally:
        lock.release()
    return True
