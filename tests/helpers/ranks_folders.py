"""Two ranks that see their files differently, as on disks of their own or through a network file system that is late.

python -m helpers.ranks_folders FOLDER     as one of two processes; prints what each scene gave on this rank, as JSON
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from avd import files
from avd.config import ComputeRecipe
from avd.distillation.monitoring import monitor, watch
from avd.engine import checkpoint, loop
from avd.engine.checkpoint import list_checkpoints
from avd.engine.loop import Schedule, UpdateResult, run
from avd.engine.ranks import Ranks, process_group
from avd.engine.run_folder import RunFolder
from avd.engine.saving import Saver
from avd.engine.stopping import Between
from avd.types import Stopped, UserError
from helpers.watched_run import watched, watched_recipe, watched_task

ROLLING_BACK = (
    "monitors.limits.motion=1000", "monitors.limits.fake_score=null", "monitors.limits.low_weights=null",
    "monitors.patience=2", "monitors.action=roll_back", "monitors.roll_backs=1", "monitors.keep_best=motion",
    "fake_score.updates=1",
)  # fmt: skip


class Counting:
    """A task whose only state is how many updates it has done."""

    def __init__(self) -> None:
        self.value = torch.zeros(1)
        self.updates: list[int] = []

    def update(self, n: int, between: Between) -> UpdateResult:
        self.value += 1
        self.begin_second_part(n)
        between(0.5)
        self.updates.append(n)
        return UpdateResult({"value": self.value.item()})

    def begin_second_part(self, n: int) -> None: ...

    def validate(self, n: int) -> dict[str, float]:
        return {}

    def sample(self, folder: Path, n: int) -> None: ...

    def tensors(self) -> dict[str, Tensor]:
        return {"value": self.value}

    def state(self) -> dict[str, Any]:
        return {}

    def load(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        self.value.copy_(tensors["value"])

    def export(self, folder: Path) -> None: ...


def count_to(
    updates: int, path: Path, ranks: Ranks, schedule: Schedule | None = None, task: Counting | None = None
) -> list[int]:
    """The updates that a run to `updates` still had to do."""
    task, folder = task or Counting(), RunFolder(path, resume=path.exists(), recipe_text="", owner=ranks.is_main)
    ranks.barrier()  # before the first rank makes the folder
    run(task, folder, schedule or Schedule(updates, checkpoint_every=2), lambda *_: None, ranks=ranks)
    return task.updates


def start_on_own_disks(base: Path, ranks: Ranks) -> object:
    """A run folder on a disk of each rank's machine."""
    path = base / f"disk-{ranks.rank}" / "run"
    return count_to(4, path, ranks)


def save_on_own_disks(base: Path, ranks: Ranks) -> object:
    """Each rank writes its part, without an error, to a place that the other does not see."""
    folder = base / f"disk-{ranks.rank}" / "checkpoints"
    saver = Saver(folder, 2, ranks)
    saver.save(6, {"w": torch.ones(3)}, {})
    try:
        saver.finish()
    finally:
        assert list_checkpoints(folder) == []
    return None


def fail_on_one(base: Path, ranks: Ranks) -> object:
    with ranks.together():
        if ranks.rank == 1:
            raise UserError("the disk of rank 1 is full")
    return None


def resume_with_an_old_listing(base: Path, ranks: Ranks) -> object:
    """Rank 1 does not see the newest checkpoint in the folder's listing yet."""
    done = count_to(4, base / "late", ranks)
    if ranks.rank == 1:
        checkpoint.list_checkpoints = lambda folder: list_checkpoints(folder)[:-1]
    return done, count_to(6, base / "late", ranks)


def monitor_with_nothing_seen(base: Path, ranks: Ranks) -> object:
    """Rank 1 sees neither the references nor the best checkpoint that the first has written."""
    if ranks.rank == 1:
        monitor._read_references = lambda path, key: None
        watch.list_checkpoints = lambda folder: []
    messages: list[str] = []
    for resume, updates in ((False, 1), (True, 6)):
        task = watched_task(watched_recipe(f"training.updates={updates}", *ROLLING_BACK), ranks)
        ranks.barrier()
        try:
            watched(base / "watched", updates, *ROLLING_BACK, resume=resume, task=task, messages=messages)
        except Stopped as stopped:
            messages.append(str(stopped))
    return task.roll_backs, sum("sampling the teacher" in message for message in messages), messages[-1]


def save_by_the_first_clock(base: Path, ranks: Ranks) -> object:
    """Rank 1's clock is an hour further at each call."""
    monotonic, calls = loop.time.monotonic, itertools.count()
    if ranks.rank == 1:
        loop.time.monotonic = lambda: 3600.0 * next(calls)
    count_to(4, base / "clock", ranks, Schedule(4, checkpoint_every=0, keep_checkpoints=9, checkpoint_minutes=1))
    loop.time.monotonic = monotonic
    return [path.name for path in list_checkpoints(base / "clock" / "checkpoints")]


class Interrupted(Counting):
    """Rank 1 is asked to end in the middle of the fourth update."""

    def __init__(self, ranks: Ranks) -> None:
        super().__init__()
        self._rank = ranks.rank

    def begin_second_part(self, n: int) -> None:
        if n == 3 and self._rank == 1:
            os.kill(os.getpid(), signal.SIGINT)


def stop_within_an_update(base: Path, ranks: Ranks) -> object:
    """All ranks stop there, though only one was asked."""
    schedule = Schedule(6, checkpoint_every=2, stop_grace=0.0)
    try:
        return count_to(6, base / "stopped", ranks, schedule, Interrupted(ranks))
    except Stopped as stopped:
        return str(stopped), count_to(6, base / "stopped", ranks, schedule)


SCENES: tuple[Callable[[Path, Ranks], object], ...] = (
    start_on_own_disks, save_on_own_disks, fail_on_one, save_by_the_first_clock, stop_within_an_update,
    resume_with_an_old_listing, monitor_with_nothing_seen,
)  # fmt: skip


if __name__ == "__main__":
    torch.set_num_threads(1)
    files.PATIENCE = 0.2
    dist.init_process_group("gloo")
    outcomes: dict[str, object] = {}
    with process_group(ComputeRecipe()) as ranks:
        for scene in SCENES:
            try:
                outcomes[scene.__name__] = scene(Path(sys.argv[1]), ranks)
            except UserError as error:
                outcomes[scene.__name__] = str(error)
    dist.destroy_process_group()
    print(json.dumps(outcomes))
