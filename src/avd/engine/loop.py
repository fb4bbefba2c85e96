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
from typing import Any, Protocol, TypeVar

from torch import Tensor

from avd.engine.checkpoint import Reader, SavedTensors, newest_checkpoint
from avd.engine.ranks import SINGLE_PROCESS, Ranks
from avd.engine.run_folder import RunFolder
from avd.engine.saving import Saver
from avd.engine.stopping import Between, Heed, StopRequest, Stops, UpdateCutShort, stop_requests
from avd.types import Stopped, UserError


@dataclass
class UpdateResult:
    """What one update gave: metrics to log, the same on all ranks, and values per sample of this rank, (B,) each, by
    the name of who gave them and their own."""

    metrics: dict[str, float] = field(default_factory=dict)
    values: dict[str, dict[str, Tensor]] = field(default_factory=dict)


class Task(Protocol):
    """What is trained. `n` counts updates from 0."""

    def update(self, n: int, between: Between) -> UpdateResult:
        """Do update `n`. An update of several parts calls `between` after each but the last; what that raises ends the
        update, and the run."""
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
    """How long a run is and how often it does what, in updates and in minutes; 0 is never."""

    updates: int
    checkpoint_every: int
    keep_checkpoints: int = 2
    validate_every: int = 0
    sample_every: int = 0
    checkpoint_minutes: float = 0.0
    """Longest time between checkpoints, as far as updates allow."""
    sample_minutes: float = 0.0
    stop_grace: float = 30.0
    """Seconds that a process has between being asked to end and being killed."""


_UNMEASURED = "unmeasured"
"""In the state of a checkpoint that was saved while the watch measured: the metrics of its last update, which are not
logged yet."""
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

    def observe(self, result: UpdateResult) -> None:
        """After each update: take note of what it gave."""
        ...

    def measure(self, updates: int, heed: Heed) -> MeasurementT | None:
        """After each update, before it is logged: what is measured now, if anything is; its metrics are logged too.

        `heed` may raise Stopped; nothing has been measured then, and the run asks again when it resumes.
        """
        ...

    def after_update(self, updates: int, metrics: Mapping[str, float], measurement: MeasurementT | None) -> Decision:
        """After each update: its metrics are logged, its samples written, its checkpoint is not yet."""
        ...

    def roll_back(self, updates: int) -> None:
        """Make another checkpoint the newest; called after a decision to roll back, while none is being written."""
        ...

    def complete(self) -> None:
        """Called once the last update is done and the result written, while the run still holds its folder."""
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

    Raises Stopped if `watch` ends the run or any rank is asked to end by SIGTERM or Ctrl-C: with the update saved, or
    within it where updates take longer than `schedule.stop_grace`.
    """
    folder.lock(ranks)
    try:
        with stop_requests() as request:
            while not _train(task, folder, schedule, progress, watch, ranks, request):
                pass
        task.export(folder.path)
        if watch is not None:
            watch.complete()
    finally:
        folder.release()


def _train(
    task: Task,
    folder: RunFolder,
    schedule: Schedule,
    progress: Progress,
    watch: Watch[MeasurementT] | None,
    ranks: Ranks,
    request: StopRequest,
) -> bool:
    """False if the run was sent back, to restart from the newest checkpoint."""
    done, unmeasured = _restore(task, folder, watch, ranks)
    with ranks.together():
        folder.rewind_metrics(done)
        if watch is not None:
            watch.begin(done)
    saver = Saver(folder.checkpoints, schedule.keep_checkpoints, ranks)
    pace, stops = Pace(), Stops(request, ranks, schedule.stop_grace)
    checkpoints = Regularly(schedule.checkpoint_every, schedule.checkpoint_minutes, schedule.updates, ranks)
    samples = Regularly(schedule.sample_every, schedule.sample_minutes, schedule.updates, ranks)
    for n in range(done, schedule.updates):
        started = time.perf_counter()
        try:
            metrics = _update(task, n, schedule, watch, stops) if unmeasured is None else unmeasured
        except UpdateCutShort as cut:
            saver.finish()
            raise _lose(folder, n, cut.seconds, schedule.stop_grace, stops, ranks) from None
        unmeasured, measurement = None, None if watch is None else _measure(task, n, metrics, watch, stops, saver)
        metrics |= {} if measurement is None else measurement.metrics
        seconds = time.perf_counter() - started
        folder.log(n, {**metrics, "seconds": round(seconds, 4)})
        if samples.due(n + 1):
            task.sample(folder.samples, n + 1)
            samples.note()
        decision = CONTINUE if watch is None else watch.after_update(n + 1, metrics, measurement)
        if decision.roll_back:
            assert watch is not None
            saver.finish()
            watch.roll_back(n + 1)
            return False
        stopping = stops.after_update()
        if checkpoints.due(n + 1) or stopping or decision.stop:
            saver.save(n + 1, task.tensors(), task.state() | ({} if watch is None else watch.state()))
            checkpoints.note()
        saver.poll()
        pace.add(seconds)
        progress(n + 1, schedule.updates, metrics, pace.left(schedule.updates - n - 1))
        if decision.stop:
            saver.finish()
            raise Stopped(decision.stop, STOPPED_BY_WATCH)
        if stopping:
            saver.finish()
            reason = f"stopped by {stops.signal.name} after update {n + 1}, which is saved: continue with --resume"
            raise Stopped(reason, 128 + stops.signal)
    saver.finish()
    return True


def _update(
    task: Task, n: int, schedule: Schedule, watch: Watch[MeasurementT] | None, stops: Stops
) -> dict[str, float]:
    """Do update `n`; its metrics, and those of its validation."""
    with stops.updating():
        result = task.update(n, stops.between)
    metrics = result.metrics
    if due(n + 1, schedule.validate_every, schedule.updates):
        metrics |= task.validate(n + 1)
    if watch is not None:
        watch.observe(result)
    return metrics


def _measure(
    task: Task, n: int, metrics: dict[str, float], watch: Watch[MeasurementT], stops: Stops, saver: Saver
) -> MeasurementT | None:
    """What the watch measures after update `n`. Raises Stopped, with the update saved, if the run is asked to end."""
    try:
        return watch.measure(n + 1, stops.heed)
    except Stopped:
        saver.save(n + 1, task.tensors(), task.state() | watch.state() | {_UNMEASURED: metrics})
        saver.finish()
        raise


def _restore(
    task: Task, folder: RunFolder, watch: Watch[MeasurementT] | None, ranks: Ranks
) -> tuple[int, dict[str, float] | None]:
    """Load the checkpoint that the first rank finds to be the newest; returns how many updates are complete and, of one
    more that is only to be measured, its metrics."""
    newest = ranks.decide(lambda: newest_checkpoint(folder.checkpoints))
    if newest is None:
        return 0, None
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
    unmeasured = state.get(_UNMEASURED)
    return int(state["step"]) - (unmeasured is not None), unmeasured


def _lose(folder: RunFolder, n: int, seconds: float, grace: float, stops: Stops, ranks: Ranks) -> Stopped:
    """How a run ends within update `n`, counted from 0: and which checkpoint is left."""
    newest = ranks.decide(lambda: newest_checkpoint(folder.checkpoints))
    done, left = (0, "no checkpoint") if newest is None else (int(newest[1]["step"]), newest[0])
    return Stopped(
        f"stopped by {stops.signal.name} within update {n + 1}: updates take {seconds:.0f} s, longer than "
        f"training.stop_grace ({grace:g} s); {left} is left in {folder.checkpoints}, updates lost: {n - done}; "
        "continue with --resume",
        128 + stops.signal,
    )


def due(done: int, every: int, last: int) -> bool:
    """Whether something done every `every` updates is due after `done` of `last`; 0 is never."""
    return every > 0 and (done % every == 0 or done == last)


class Regularly:
    """When something is due that is done every `every` updates, every `minutes`, and after the last of `updates`; 0 is
    never. The first rank's clock is the one that counts."""

    def __init__(self, every: int, minutes: float, updates: int, ranks: Ranks) -> None:
        self._every, self._minutes, self._updates, self._ranks = every, minutes, updates, ranks
        self._last = time.monotonic()

    def due(self, done: int) -> bool:
        """After `done` updates, on all ranks alike; all must ask."""
        if due(done, self._every, self._updates) or not self._minutes:
            return due(done, self._every, self._updates)
        passed = time.monotonic() - self._last >= 60.0 * self._minutes
        return self._ranks.any_rank(self._ranks.is_main and passed) or done == self._updates

    def note(self) -> None:
        """It has been done now."""
        self._last = time.monotonic()


class Pace:
    """Seconds left, from a running mean of the last updates: shared machines change their speed."""

    def __init__(self) -> None:
        self._mean = math.nan

    def add(self, seconds: float) -> None:
        self._mean = seconds if math.isnan(self._mean) else 0.95 * self._mean + 0.05 * seconds

    def left(self, updates: int) -> float | None:
        return None if math.isnan(self._mean) else self._mean * updates
