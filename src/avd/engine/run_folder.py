"""The folder of a run: who may write into it, and its metrics."""

from __future__ import annotations

import os
import socket
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from avd.engine.ranks import SINGLE_PROCESS, Ranks
from avd.files import (
    LOCK_FILE,
    FolderLock,
    append_json_line,
    check_can_make,
    is_unfinished,
    read_json_lines,
    read_text,
    unfinished,
    wait_until,
    write_json_lines,
    write_text,
)
from avd.section import Section
from avd.types import UserError

RECIPE_FILE = "recipe.yaml"
METRICS_FILE = "metrics.jsonl"
_SCHEDULE = (
    *("updates", "checkpoint_every", "checkpoint_minutes", "keep_checkpoints", "sample_every", "sample_minutes"),
    "stop_grace",
)
_COMPUTE = (
    "device",
    "tf32",
    "microbatch",
    "checkpointing",
    "compile",
    "attention",
    "shard",
    "context",
    "timeout_minutes",
)
_MAY_CHANGE = {
    "updates",
    "trackers",
    "student.start",  # which a run that has a checkpoint needs no more
    "fake_score.start",
    *(f"data.{key}" for key in ("cache", "caches", "prompts")),  # compared by content: see `distillation.data`
    *(f"training.{key}" for key in _SCHEDULE),
    *(f"compute.{key}" for key in _COMPUTE),
}
_MAY_CHANGE_UNDER = "monitors."


class RunFolder:
    """`recipe.yaml`, `metrics.jsonl`, `checkpoints/`, `samples/`, and at the end the result's folder.

    A folder that holds anything is taken: it is only opened with `resume`, and then only if it holds a run;
    `check_same_recipe` says whether it is the same one. Opening changes nothing on disk; `lock` lays the folder out and
    holds it until `release` or the process's end, however it ends.

    Of several processes of one run, one is the `owner`; in the others nothing here is checked or written.

    Raises UserError for a folder that cannot be opened, or that another run holds.
    """

    def __init__(self, path: Path, *, resume: bool, recipe_text: str, owner: bool = True) -> None:
        self.path, self._recipe_text, self._owner = path, recipe_text, owner
        self._lock = FolderLock(path, f"run {path}")
        if owner:
            self._check(resume)

    def _check(self, resume: bool) -> None:
        path = self.path
        recipe = path / RECIPE_FILE
        check_can_make(path)
        if resume and not path.exists():
            raise UserError(f"there is no run {path} to resume: check the name, or leave --resume out to begin one")
        if path.exists() and not path.is_dir():
            raise UserError(f"output {path} is a file: name a folder")
        taken = path.exists() and any(not is_unfinished(part) and part.name != LOCK_FILE for part in path.iterdir())
        if taken and not recipe.exists():
            raise UserError(f"output folder {path} holds files that are not an avd run: name another folder")
        if taken and not resume:
            raise UserError(f"output folder {path} already holds a run: add --resume to continue it, or name another")
        if path.exists() and not os.access(path, os.W_OK):
            raise UserError(f"output folder {path} is not writable: change its mode, or name another")

    def lock(self, ranks: Ranks = SINGLE_PROCESS) -> None:
        """Lay the folder out, or, in a run that is resumed, write its recipe again. Doing it twice does no harm.

        Every rank calls it. Raises UserError on all of them if another process holds the folder, or if a rank does not
        see what the first one writes there: its part of a checkpoint would be lost.
        """
        with ranks.together():
            if self._owner:
                self.path.mkdir(parents=True, exist_ok=True)
                self._lock.acquire()
                write_text(self.path / RECIPE_FILE, self._recipe_text)
                self.checkpoints.mkdir(exist_ok=True)
                self.samples.mkdir(exist_ok=True)
        if ranks.size > 1:
            self._check_shared(ranks)

    def _check_shared(self, ranks: Ranks) -> None:
        """Let the first rank write a file, and raise UserError on all ranks unless all can read it."""
        probe = unfinished(self.path / "probe")
        token, writer = ranks.decide(lambda: _write_probe(probe))
        seen = wait_until(lambda: probe.is_file() and probe.read_text() == token)
        blind = [rank for rank, sees in enumerate(ranks.list_numbers(float(seen))) if not sees]
        if ranks.is_main:
            probe.unlink(missing_ok=True)
        if blind:
            host = ranks.broadcast(socket.gethostname(), blind[0])
            raise UserError(
                f"{len(blind)} of {ranks.size} processes, the first of them rank {blind[0]} on {host}, cannot see the "
                f"run folder {self.path} that rank 0 writes on {writer}: name a folder on storage that all machines "
                "share, by the same path"
            )

    def release(self) -> None:
        """Let another process lock the folder."""
        self._lock.release()

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def samples(self) -> Path:
        return self.path / "samples"

    @property
    def metrics(self) -> Path:
        return self.path / METRICS_FILE

    def rewind_metrics(self, updates: int) -> None:
        """Drop the lines of updates at or past `updates`, and a last line that a crash cut in two."""
        if not self._owner or not self.metrics.exists():
            return
        write_json_lines(self.metrics, (line for line in read_json_lines(self.metrics) if line["update"] < updates))

    def log(self, update: int, values: Mapping[str, float]) -> None:
        """Append a line. A metric that is not finite becomes null."""
        if self._owner:
            append_json_line(self.metrics, {"update": update, **values})


def _write_probe(path: Path) -> tuple[str, str]:
    """What it holds, and the machine that wrote it."""
    token = uuid.uuid4().hex
    path.write_text(token)
    return token, socket.gethostname()


def check_same_recipe(folder: Path, recipe: Section) -> None:
    """Raise UserError unless the run in `folder`, if it holds one, began as `recipe` says.

    How long a run is, how often it saves and how it is watched may change. A key that the run's own recipe lacks is
    newer than the run, and stands for its default.
    """
    path = folder / RECIPE_FILE
    if not path.exists():
        return
    saved = _read_saved(path)
    try:
        before = flatten(type(recipe).model_validate(saved).model_dump(mode="json", by_alias=True))
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(map(str, problem["loc"])) or "recipe"
        reason = problem["msg"].removeprefix("Value error, ")
        raise UserError(
            f"run {folder} began with a recipe that this command or version does not accept ({key}: {reason}): "
            "resume it with the command and version it began with, or name another output folder"
        ) from error
    now = flatten(recipe.model_dump(mode="json", by_alias=True))
    for key in sorted(before.keys() | now.keys()):
        if key not in _MAY_CHANGE and not key.startswith(_MAY_CHANGE_UNDER) and before.get(key) != now.get(key):
            raise UserError(
                f"run {folder} began with {key} = {before.get(key)}, now it is {now.get(key)}: "
                "resume with the same recipe, or name another output folder"
            )


def _read_saved(path: Path) -> dict[str, Any]:
    try:
        saved = yaml.safe_load(read_text(path))
        if not isinstance(saved, dict):
            raise ValueError(f"it holds a {type(saved).__name__}, not keys")
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} is not an avd recipe ({reason}): name another output folder") from error
    return saved


def flatten(values: Any, prefix: str = "") -> dict[str, Any]:
    """Values of nested sections by dotted key."""
    if not isinstance(values, dict):
        return {prefix: values}
    return {
        k: v for key, value in values.items() for k, v in flatten(value, f"{prefix}.{key}" if prefix else key).items()
    }
