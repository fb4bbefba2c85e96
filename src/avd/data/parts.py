"""A cache written in parts, by any number of processes that need not know of each other.

The videos, in their order, are cut into parts of a fixed number of files, however many processes there are. Each part
is a cache of its own, in the folder `part-00000` and so on of the cache, and is written by one process at a time, which
holds its lock. Part i belongs to share i mod N. When all parts are complete, one process joins them: the manifest of
the cache names the files in all parts, in their order. What a reader sees does not depend on N, and a process that is
killed costs what it had not yet written.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
    if not all(is_unfinished(entry) or entry.name == LOCK_FILE for entry in others):
        raise UserError(f"{cache} holds other files: name a new folder for the latent cache")
    starts = range(0, len(planned), files)
    return [Part(part_folder(cache, i), planned[start : start + files]) for i, start in enumerate(starts)]


def wait_for(parts: Sequence[Part], progress: CountProgress | None = None) -> None:
    """Return when all of `parts` are complete. `progress` is called with how many are, and of how many."""
    report = progress or (lambda done, total: None)
    left = [part for part in parts if not part.is_complete]
    while left:
        report(len(parts) - len(left), len(parts))
        time.sleep(_POLL)
        left = [part for part in left if not part.is_complete]
        if not left:
            report(len(parts), len(parts))


def remove_parts(cache: Path, parts: Sequence[Part]) -> None:
    """Take back a cache of which nothing came, so that the folder can be used for another try."""
    for part in parts:
        shutil.rmtree(part.path)
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
