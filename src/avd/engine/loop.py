"""The one training loop: VAE, teacher, interpolator and student all run in it.

A task knows what an update is; the loop knows when to checkpoint, validate, sample and stop, on every rank alike.
Tasks draw their randomness from `engine.randomness`, so a checkpoint after update n is all that update n + 1 depends
on.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGTERM
from typing import Any, Protocol, TypeVar

from torch import Tensor

from avd.engine.checkpoint import Reader, SavedTensors, newest_checkpoint
from avd.engine.ranks import SINGLE_PROCESS, Ranks
from avd.engine.run_folder import RunFolder
from avd.engine.saving import Saver, StopRequest, stop_requests
from avd.types import Stopped, UserError


@dataclass
class UpdateResult:
    """What one update gave: metrics to log, the same on all ranks, and values per sample of this rank, (B,) each, by
    the name of who gave them and their own."""

    metrics: dict[str, float] = field(default_factory=dict)
    values: dict[str, dict[str, Tensor]] = field(default_factory=dict)


class Task(Protocol):
    """What is trained. `n` counts updates from 0."""

    def update(self, n: int) -> UpdateResult:
        """Do update `n`."""
        ...

    def validate(self, n: int) -> dict[str, float]:
        """Held-out metrics after `n` updates; may be empty."""
        ...

    def sample(self, folder: Path, n: int) -> None:
        """Write samples after `n` updates, for a person to look at."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """Everything a resumed run needs that is a tensor."""
        ...

    def state(self) -> dict[str, Any]:
        """Everything else it needs, JSON-able."""
        ...

    def load(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None: ...

    def export(self, folder: Path) -> None:
        """Write the result after the last update."""
        ...


@dataclass(frozen=True)
class Schedule:
    """How long a run is and how often it does what, all in updates; 0 is never."""

    updates: int
    checkpoint_every: int
    keep_checkpoints: int = 2
    validate_every: int = 0
    sample_every: int = 0


STOPPED_BY_WATCH = 3
"""Exit code of a run that was ended because of what it measured."""


@dataclass(frozen=True)
class Decision:
    """What happens to a run next: by default it continues."""

    stop: str | None = None
    """Save the state and end the run, for this reason."""
    roll_back: bool = False
    """Restart from the newest checkpoint, as a resumed run does."""


CONTINUE = Decision()


class Measurement(Protocol):
    """What a watch measured after an update."""

    @property
    def metrics(self) -> Mapping[str, float]: ...


MeasurementT = TypeVar("MeasurementT", bound=Measurement)


class Watch(Protocol[MeasurementT]):
    """Looks on while a task is trained."""

    def begin(self, updates: int) -> None:
        """The run begins, or resumes from a checkpoint, after `updates` updates."""
        ...

    def measure(self, updates: int, result: UpdateResult) -> MeasurementT | None:
        """After each update, before it is logged: what is measured now, if anything is; its metrics are logged too."""
        ...

    def after_update(self, updates: int, metrics: Mapping[str, float], measurement: MeasurementT | None) -> Decision:
        """After each update: its metrics are logged, its samples written, its checkpoint is not yet."""
        ...

    def roll_back(self, updates: int) -> None:
        """Make another checkpoint the newest; called after a decision to roll back, while none is being written."""
        ...

    def state(self) -> dict[str, Any]:
        """What a resumed run needs, JSON-able, under names that the task's own state does not have."""
        ...

    def load(self, state: Mapping[str, Any]) -> None: ...


Progress = Callable[[int, int, Mapping[str, float], float | None], None]
"""Called with (updates done, updates in all, metrics of the last one, seconds left or None)."""


def run(
    task: Task,
    folder: RunFolder,
    schedule: Schedule,
    progress: Progress,
    watch: Watch[MeasurementT] | None = None,
    ranks: Ranks = SINGLE_PROCESS,
) -> None:
    """Train to `schedule.updates`, from the newest checkpoint in `folder` if there is one, and export.

    Every rank runs it, on a folder that all see; the first one writes, and decides what depends on what is there.
    Raises Stopped, with a checkpoint saved, if
    `watch` ends the run or any rank is stopping to end by SIGTERM or Ctrl-C.
    """
    folder.lock(ranks)
    try:
        with stop_requests() as stop:
            while not _train(task, folder, schedule, progress, watch, ranks, stop):
                pass
        task.export(folder.path)
    finally:
        folder.release()


def _train(
    task: Task,
    folder: RunFolder,
    schedule: Schedule,
    progress: Progress,
    watch: Watch[MeasurementT] | None,
    ranks: Ranks,
    stop: StopRequest,
) -> bool:
    """False if the run was sent back, to restart from the newest checkpoint."""
    done = _restore(task, folder, watch, ranks)
    with ranks.together():
        folder.rewind_metrics(done)
        if watch is not None:
            watch.begin(done)
    saver = Saver(folder.checkpoints, schedule.keep_checkpoints, ranks)
    pace = Pace()
    for n in range(done, schedule.updates):
        started = time.perf_counter()
        result, measurement = task.update(n), None
        metrics = result.metrics
        if due(n + 1, schedule.validate_every, schedule.updates):
            metrics |= task.validate(n + 1)
        if watch is not None:
            measurement = watch.measure(n + 1, result)
            metrics |= {} if measurement is None else measurement.metrics
        seconds = time.perf_counter() - started
        folder.log(n, {**metrics, "seconds": round(seconds, 4)})
        if due(n + 1, schedule.sample_every, schedule.updates):
            task.sample(folder.samples, n + 1)
        decision = CONTINUE if watch is None else watch.after_update(n + 1, metrics, measurement)
        if decision.roll_back:
            assert watch is not None
            saver.finish()
            watch.roll_back(n + 1)
            return False
        stopping = ranks.any_rank(bool(stop))
        if stopping or decision.stop or due(n + 1, schedule.checkpoint_every, schedule.updates):
            saver.save(n + 1, task.tensors(), task.state() | ({} if watch is None else watch.state()))
        saver.poll()
        pace.add(seconds)
        progress(n + 1, schedule.updates, metrics, pace.left(schedule.updates - n - 1))
        if decision.stop:
            saver.finish()
            raise Stopped(decision.stop, STOPPED_BY_WATCH)
        if stopping:
            saver.finish()
            number = stop.signal or SIGTERM
            reason = f"stopped by {number.name} after update {n + 1}, which is saved: continue with --resume"
            raise Stopped(reason, 128 + number)
    saver.finish()
    return True


def _restore(task: Task, folder: RunFolder, watch: Watch[MeasurementT] | None, ranks: Ranks) -> int:
    """Load the checkpoint that the first rank finds to be the newest; returns the updates it was saved after."""
    newest = ranks.decide(lambda: newest_checkpoint(folder.checkpoints))
    if newest is None:
        return 0
    name, state = newest
    path = folder.checkpoints / name
    reader = Reader(ranks.shard_rank, ranks.shard_size, ranks.size)
    with ranks.together(), SavedTensors(path, reader) as tensors:
        try:
            task.load(tensors, state)
            if watch is not None:
                watch.load(state)
        except UserError:  # a file that cannot be read
            raise
        except (LookupError, RuntimeError, ValueError) as error:  # as `load_state_dict` and its like raise them
            raise UserError(f"checkpoint {path} does not fit the model: resume with the model it began with") from error
    return int(state["step"])


def due(done: int, every: int, last: int) -> bool:
    """Whether something done every `every` updates is due after `done` of `last`; 0 is never."""
    return every > 0 and (done % every == 0 or done == last)


class Pace:
    """Seconds left, from a running mean of the last updates: shared machines change their speed."""

    def __init__(self) -> None:
        self._mean = math.nan

    def add(self, seconds: float) -> None:
        self._mean = seconds if math.isnan(self._mean) else 0.95 * self._mean + 0.05 * seconds

    def left(self, updates: int) -> float | None:
        return None if math.isnan(self._mean) else self._mean * updates
