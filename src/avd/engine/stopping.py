"""Requests to end a run: noted when a signal arrives, and obeyed by all ranks at the same place.

A scheduler sends SIGTERM and, some seconds later, SIGKILL. A run that is asked to end finishes its update and saves it.
Where an update takes longer than those seconds, it would be killed first: it ends between two parts of the update
instead, and is resumed from its last checkpoint.
"""

from __future__ import annotations

import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import torch

from avd.engine.ranks import Ranks
from avd.types import Stopped

Between = Callable[[float], None]
"""Called by every rank between two parts of an update, with the share of it that is done, in (0, 1). It may raise."""


Heed = Callable[[], None]
"""Called by all ranks before each call of a network outside of updates; may raise Stopped, on all of them."""


def one_part(share: float) -> None:
    """Let an update be done to its end."""


_RECENT = 8
"""Updates whose longest is what the next may take. The first one, which compiles, is soon forgotten."""


class StopRequest:
    """Whether the process has been asked to end, and by which signal."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    def __bool__(self) -> bool:
        return self.signal is not None


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """For the duration of a block, SIGTERM (a scheduler's preemption) and Ctrl-C are noted instead of obeyed.

    A second one ends the process at once. Outside of the main thread, where Python delivers no signals, none is noted.
    """
    request = StopRequest()

    def note(number: int, frame: FrameType | None) -> None:
        request.signal = signal.Signals(number)
        signal.signal(number, before[request.signal])

    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def raise_if_asked(request: StopRequest, ranks: Ranks, doing: str) -> None:
    """Raise Stopped on all ranks, which must all ask, if any is asked to end; `doing` says amid what."""
    if ranks.any_rank(bool(request)):
        number = request.signal or signal.SIGTERM
        raise Stopped(f"stopped by {number.name} {doing}: continue with --resume", 128 + number)


class UpdateCutShort(Exception):
    """Raised within an update that would take longer than is left. `seconds`: how long it takes, as far as known."""

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self.seconds = seconds


class Stops:
    """Whether the run ends now, asked by all ranks at the same places; a request to any rank is one to all.

    `grace`: seconds that a process has between being asked to end and being killed.
    """

    def __init__(self, request: StopRequest, ranks: Ranks, grace: float) -> None:
        self._request, self._ranks, self._grace = request, ranks, grace
        self._recent: deque[float] = deque(maxlen=_RECENT)
        self._started = self._seconds = 0.0

    @contextmanager
    def updating(self) -> Iterator[None]:
        """To be held around an update, whose seconds it takes."""
        self._started = time.perf_counter()
        yield
        self._seconds = time.perf_counter() - self._started

    def between(self, share: float) -> None:
        """See `Between`. Raises UpdateCutShort, on all ranks, if any is asked to end and updates outlast the grace.

        Ranks exchange a number only where an update may take so long: in the first one, and while recent ones did.
        """
        known = max(self._recent, default=None)
        if known is not None and known <= self._grace:
            return
        expected = (time.perf_counter() - self._started) / share if known is None else known
        stopping, seconds = self._ranks.all_max(torch.tensor([float(bool(self._request)), expected])).tolist()
        if stopping and seconds > self._grace:
            raise UpdateCutShort(seconds)

    def heed(self) -> None:
        """See `Heed`."""
        raise_if_asked(self._request, self._ranks, "while the update was measured, which is saved")

    def after_update(self) -> bool:
        """Whether any rank is asked to end, once all that belongs to the update is done."""
        stopping, seconds = self._ranks.all_max(torch.tensor([float(bool(self._request)), self._seconds])).tolist()
        if seconds:  # none after an update of an earlier process, which was only measured now
            self._recent.append(seconds)
        return bool(stopping)

    @property
    def signal(self) -> signal.Signals:
        """The one that this rank was asked by; SIGTERM if another was."""
        return self._request.signal or signal.SIGTERM
