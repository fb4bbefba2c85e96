"""A cache written in parts, by any number of processes that need not know of each other.

The videos, in their order, are cut into parts of a fixed number of files, however many processes there are. Each part
is a cache of its own, in the folder `part-00000` and so on of the cache, and is written by one process at a time, which
holds its lock. Part i belongs to share i mod N. When all parts are complete, one process joins them: the manifest of
the cache names the files in all parts, in their order. What a reader sees does not depend on N, and a process that is
killed costs what it had not yet written. One that fails leaves an empty file `failed-00000` and so on, by its share,
for whoever waits for its parts.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from avd.data.cache import MANIFEST, is_begun, part_folder, read_manifest
from avd.data.plan import Planned
from avd.data.texts import TEXTS
from avd.files import LOCK_FILE, FolderLock, is_unfinished
from avd.types import CountProgress, UserError

PART_FILES = 64
"""Files of a part: few enough for many processes, enough that shards are large."""
_POLL = 1.0
"""Seconds between looks at what others have written."""
_START = 120.0
"""Seconds within which processes that are started together have all begun."""
_FAILED = "failed-"


@dataclass(frozen=True)
class Share:
    """One process among `count` that write a cache, from 0. Every `count`-th part, from number `index` on, is its own.

    It waits for the parts of the shares `waits_for` and then joins all parts, if all are complete; without any it
    leaves that to others.
    """

    index: int = 0
    count: int = 1
    waits_for: range = range(1)


@dataclass(frozen=True)
class Part:
    """Consecutive videos of a cache, and the folder of the cache that is made of them."""

    path: Path
    planned: Sequence[Planned]

    @property
    def is_complete(self) -> bool:
        """Whether its clips and their captions are encoded."""
        if not (self.path / MANIFEST).exists():
            return False
        return (self.path / TEXTS).exists() or read_manifest(self.path)["count"] == 0

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the part's folder, made if need be. Raises `UserError` if another process does."""
        self.path.mkdir(parents=True, exist_ok=True)
        with locked(self.path, of=self.path.parent):
            yield


def split_parts(cache: Path, planned: Sequence[Planned], files: int) -> list[Part]:
    """The parts of a cache, of `files` videos each but for the last.

    Raises `UserError` if the folder holds anything else.
    """
    if cache.exists() and not cache.is_dir():
        raise UserError(f"{cache} is a file: name a new folder for the latent cache")
    others = [] if not cache.exists() or is_begun(cache) else list(cache.iterdir())
    if not all(is_unfinished(entry) or entry.name == LOCK_FILE or entry.name.startswith(_FAILED) for entry in others):
        raise UserError(f"{cache} holds other files: name a new folder for the latent cache")
    starts = range(0, len(planned), files)
    return [Part(part_folder(cache, i), planned[start : start + files]) for i, start in enumerate(starts)]


@contextmanager
def failing_aloud(cache: Path, share: Share) -> Iterator[None]:
    """Leave a note in the cache if the work of a share, done inside the block, fails. One of an earlier try goes."""
    note = _note(cache, share.index)
    note.unlink(missing_ok=True)
    try:
        yield
    except BaseException:
        with suppress(OSError):  # what failed says more
            note.touch()
        raise


def wait_for(cache: Path, parts: Sequence[Part], share: Share, progress: CountProgress | None = None) -> None:
    """Return when those of all `parts` are complete that `share` waits for.

    `progress` is called with how many are, and of how many. Raises `UserError` if a process whose parts are missing has
    failed. A note that is there at first may be of an earlier try, and counts if it is not taken back within
    `_START`.
    """
    report = progress or (lambda done, total: None)
    awaited = [part for index in share.waits_for for part in parts[index :: share.count]]
    left = [part for part in awaited if not part.is_complete]
    doubted, end = _failures(cache, share), time.monotonic() + _START
    while left:
        report(len(awaited) - len(left), len(awaited))
        time.sleep(_POLL)
        failures = _failures(cache, share)
        left = [part for part in left if not part.is_complete]
        doubted = doubted & failures if time.monotonic() < end else set()
        if left and failures - doubted:
            raise UserError(
                f"process {min(failures - doubted)} of the {share.count}, from 0, that write the latent cache {cache} "
                "has failed: its last lines say why; put it right and run the same command again"
            )
        if not left:
            report(len(awaited), len(awaited))


def _failures(cache: Path, share: Share) -> set[int]:
    return {index for index in share.waits_for if _note(cache, index).exists()}


def _note(cache: Path, index: int) -> Path:
    return cache / f"{_FAILED}{index:05d}"


def remove_notes(cache: Path) -> None:
    """Take back what processes that failed have left: their parts are complete, by whomever."""
    for note in cache.glob(f"{_FAILED}*"):
        note.unlink()


def remove_parts(cache: Path, parts: Sequence[Part]) -> None:
    """Take back a cache of which nothing came, so that the folder can be used for another try."""
    for part in parts:
        shutil.rmtree(part.path)
    remove_notes(cache)
    (cache / LOCK_FILE).unlink(missing_ok=True)
    cache.rmdir()


@contextmanager
def locked(folder: Path, of: Path) -> Iterator[None]:
    """Hold a folder of the cache `of` inside the block. Raises `UserError` if another process does."""
    lock = FolderLock(folder, f"the latent cache {of}")
    lock.acquire()
    try:
        yield
    finally:
        lock.release()
