"""Saving a run while it trains: checkpoints in the background."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from avd.engine.checkpoint import (
    copy_pieces,
    discard_pieces,
    list_checkpoints,
    missing_parts,
    publish,
    write_pieces,
)
from avd.engine.ranks import Ranks
from avd.files import clear_unfinished
from avd.types import UserError


@dataclass
class _Write:
    """A checkpoint under way. `size` and `error` are set by the thread."""

    step: int
    state: Mapping[str, Any]
    thread: threading.Thread
    size: int = 0
    """Bytes of this rank's part."""
    error: BaseException | None = None


class Saver:
    """Writes checkpoints under `folder`, keeping the newest `keep`.

    `save` copies what is to be written and returns; a thread of each rank writes its part, and the checkpoint appears
    once all have and the first rank has counted them. Every rank must call the same methods in the same order.

    All methods raise UserError, on all ranks, if a checkpoint cannot be written: what was there before is still there.
    """

    def __init__(self, folder: Path, keep: int, ranks: Ranks) -> None:
        self._folder, self._keep, self._ranks = folder, keep, ranks
        self._write: _Write | None = None

    def save(self, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Begin to write checkpoint `step`, after the one before has ended."""
        self.finish()
        with self._ranks.together():
            if self._ranks.is_main:
                clear_unfinished(self._folder)
        pieces = copy_pieces(tensors, first=self._ranks.is_main)

        def work() -> None:
            try:
                write.size = write_pieces(self._folder, step, pieces, self._ranks.rank, self._ranks.size)
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
        ranks, remedy = self._ranks, "make room"
        try:
            with ranks.together():
                if write.error is not None:
                    raise write.error
            sizes = [int(size) for size in ranks.list_numbers(write.size)]
            missing = ranks.decide(lambda: missing_parts(self._folder, write.step, sizes))
            if missing:
                remedy = "put the run on storage that all machines share,"
                raise UserError(
                    f"{len(missing)} of {ranks.size} parts, the first of them rank {missing[0]}'s, are not there as "
                    "they were written"
                )
            ranks.decide(lambda: publish(self._folder, write.step, write.state, self._keep))
        except Exception as error:
            good = ranks.decide(lambda: self._give_up(write.step))
            if not isinstance(error, OSError | SafetensorError | UserError):
                raise
            last = f"the last good one is {good}" if good else "there is none before it"
            raise UserError(
                f"checkpoint of update {write.step} cannot be written to {self._folder} ({error}); {last}: "
                f"{remedy} and continue with --resume"
            ) from error

    def _give_up(self, step: int) -> str | None:
        """Remove what was written of checkpoint `step`; returns the newest there is."""
        discard_pieces(self._folder, step)
        return next((str(path) for path in reversed(list_checkpoints(self._folder))), None)
