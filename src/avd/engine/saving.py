"""Saving a run while it trains: checkpoints in the background, and a last one when somebody asks it to stop."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from avd.engine.checkpoint import copy_pieces, discard_pieces, list_checkpoints, publish, write_pieces
from avd.engine.ranks import Ranks
from avd.files import clear_unfinished
from avd.types import UserError


@dataclass
class _Write:
    """A checkpoint under way. `error` is set by the thread."""

    step: int
    state: Mapping[str, Any]
    thread: threading.Thread
    error: BaseException | None = None


class Saver:
    """Writes checkpoints under `folder`, keeping the newest `keep`.

    `save` copies what is to be written and returns; a thread of each rank writes its part, and the checkpoint appears
    once all have. Every rank must call the same methods in the same order.

    All methods raise UserError, on all ranks, if a checkpoint cannot be written: what was there before is still there.
    """

    def __init__(self, folder: Path, keep: int, ranks: Ranks) -> None:
        self._folder, self._keep, self._ranks = folder, keep, ranks
        self._write: _Write | None = None

    def save(self, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Begin to write checkpoint `step`, after the one before has ended."""
        self.finish()
        if self._ranks.is_main:
            clear_unfinished(self._folder)
        self._ranks.barrier()
        pieces = copy_pieces(tensors, first=self._ranks.is_main)

        def work() -> None:
            try:
                write_pieces(self._folder, step, pieces, self._ranks.rank, self._ranks.size)
            except BaseException as error:  # whatever it is, the checkpoint must not appear
                write.error = error

        write = self._write = _Write(step, dict(state), threading.Thread(target=work, name="checkpoint"))
        write.thread.start()

    def poll(self) -> None:
        """Let a checkpoint appear whose parts are all written. To be called now and then."""
        if self._write is not None and not self._ranks.any_rank(self._write.thread.is_alive()):
            self._appear(self._write)

    def finish(self) -> None:
        """Wait for the checkpoint under way, if there is one."""
        if self._write is not None:
            self._write.thread.join()
            self._appear(self._write)

    def _appear(self, write: _Write) -> None:
        write.thread.join()
        self._write = None
        if not self._ranks.any_rank(write.error is not None) and self._ranks.is_main:
            try:
                publish(self._folder, write.step, write.state, self._keep)
            except OSError as error:
                write.error = error
        if write.error is not None and not isinstance(write.error, OSError | SafetensorError):
            raise write.error
        if self._ranks.any_rank(write.error is not None):
            if self._ranks.is_main:
                discard_pieces(self._folder, write.step)
            good = list_checkpoints(self._folder)
            last = f"the last good one is {good[-1]}" if good else "there is none before it"
            why = write.error or "another process could not write its part"
            raise UserError(
                f"checkpoint of update {write.step} cannot be written to {self._folder} ({why}); {last}: "
                "make room and continue with --resume"
            )


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
