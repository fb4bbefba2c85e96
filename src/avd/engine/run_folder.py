"""The folder of a run: who may write into it, and its metrics."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from avd.files import check_can_make
from avd.types import UserError

RECIPE_FILE = "recipe.yaml"
_WRITING = ".writing"
_LOCK = ".lock"
_SCHEDULE = ("updates", "checkpoint_every", "keep_checkpoints", "sample_every")
_COMPUTE = ("device", "microbatch", "checkpointing", "compile", "attention", "shard", "context")
_MAY_CHANGE = {
    "updates",
    "kind",  # runs of `avd train` did not always note it, and kinds differ in other keys too
    "trackers",
    *(f"training.{key}" for key in _SCHEDULE),
    *(f"compute.{key}" for key in _COMPUTE),
}
_MAY_CHANGE_UNDER = "monitors."


class RunFolder:
    """`recipe.yaml`, `metrics.jsonl`, `checkpoints/`, `samples/`, and at the end the result's folder.

    A folder that holds anything is taken: it is only opened with `resume`, and then only if it holds a run that began
    with the same recipe. Opening changes nothing on disk; `claim` lays the folder out and holds it until `release` or
    the process's end, however it ends.

    Of several processes of one run, one is the `owner`; in the others nothing here is checked or written.

    Raises UserError for a folder that cannot be opened, or that another run holds.
    """

    def __init__(self, path: Path, *, resume: bool, recipe_text: str, owner: bool = True) -> None:
        self.path, self._recipe_text, self._owner = path, recipe_text, owner
        self._lock = FileLock(path / _LOCK, timeout=0)
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
        taken = path.exists() and any(not part.name.endswith((_WRITING, _LOCK)) for part in path.iterdir())
        if taken and not recipe.exists():
            raise UserError(f"output folder {path} holds files that are not a run of avd: name another folder")
        if taken and not resume:
            raise UserError(f"output folder {path} already holds a run: add --resume to continue it, or name another")
        if taken:
            _refuse_other_recipe(recipe, self._recipe_text)

    def lock(self) -> None:
        """Lay the folder out, or, in a run that is resumed, note its recipe anew. Doing it twice does no harm."""
        if not self._owner:
            return
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire()
        except Timeout:
            raise UserError(f"another process is writing into run {self.path}: wait for it or end it") from None
        write_text(self.path / RECIPE_FILE, self._recipe_text)
        self.checkpoints.mkdir(exist_ok=True)
        self.samples.mkdir(exist_ok=True)

    def release(self) -> None:
        """Let another process claim the folder."""
        self._lock.release(force=True)

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def samples(self) -> Path:
        return self.path / "samples"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    def rewind_metrics(self, updates: int) -> None:
        """Drop the lines of updates at or past `updates`, and a last line that a crash cut in two."""
        if not self._owner or not self.metrics.exists():
            return
        kept = []
        for line in self.metrics.read_text().splitlines():
            try:
                if json.loads(line)["update"] < updates:
                    kept.append(line)
            except ValueError:
                break
        write_text(self.metrics, "".join(line + "\n" for line in kept))

    def log(self, update: int, values: Mapping[str, float]) -> None:
        """Append a line. A metric that is not finite becomes null: JSON has no other word for it."""
        if not self._owner:
            return
        finite = {k: v if math.isfinite(v) else None for k, v in values.items()}
        with self.metrics.open("a") as file:
            file.write(json.dumps({"update": update, **finite}, allow_nan=False) + "\n")


def _refuse_other_recipe(saved: Path, recipe_text: str) -> None:
    """A run goes on only as it began; how long it is, how often it saves and how it is watched may change."""
    try:
        before, now = _flat(yaml.safe_load(saved.read_text())), _flat(yaml.safe_load(recipe_text))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{saved} is no recipe of avd: name another output folder") from error
    for key in sorted(before.keys() | now.keys()):
        if key not in _MAY_CHANGE and not key.startswith(_MAY_CHANGE_UNDER) and before.get(key) != now.get(key):
            raise UserError(
                f"run {saved.parent} began with {key} = {before.get(key)}, now it is {now.get(key)}: "
                "resume with the same recipe, or name another output folder"
            )


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(values, dict):
        return {prefix: values}
    return {
        k: v for key, value in values.items() for k, v in _flat(value, f"{prefix}.{key}" if prefix else key).items()
    }


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    writing = path.with_name(path.name + _WRITING)
    writing.write_text(text)
    os.replace(writing, path)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """An empty folder to write into; once the block has ended well it is `path`, in place of an older one there.

    A process killed at any moment leaves either the old folder or the new one, or, for the instant between two
    renames, both under names that the next try clears away.
    """
    writing, old = path.with_name(path.name + _WRITING), path.with_name(path.name + ".old" + _WRITING)
    for stale in (writing, old):
        shutil.rmtree(stale, ignore_errors=True)
    writing.mkdir(parents=True)
    try:
        yield writing
        if path.exists():
            os.replace(path, old)
        os.replace(writing, path)
    finally:
        shutil.rmtree(writing, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)
