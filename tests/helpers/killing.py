"""Processes that are killed with signal 9 at a chosen moment."""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn


def die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("not reached")


def before(owner: Any, name: str, call: int) -> None:
    """Die as the `call`-th call (from 1) of `owner.name` begins."""
    original: Callable[..., Any] = getattr(owner, name)
    calls = 0

    def counted(*args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        return die() if calls == call else original(*args, **options)

    setattr(owner, name, counted)


def before_rename_to(name: str) -> None:
    """Die as something is about to be renamed to `name`, in whatever folder."""
    original = os.replace

    def watched(source: Any, target: Any) -> None:
        return die() if Path(target).name == name else original(source, target)

    os.replace = watched  # type: ignore[assignment]


def in_a_fork(work: Callable[[], int]) -> int:
    """How a child that does `work` ended: its exit code, or minus the signal that killed it."""
    return in_forks([work])[0]


def in_forks(works: Sequence[Callable[[], int]]) -> list[int]:
    """How children that work at the same time ended, as `in_a_fork`."""
    children = []
    for work in works:
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where a shell started us with "&"
            try:
                os._exit(work())
            except BaseException:
                traceback.print_exc()
                os._exit(70)
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
