"""Records of clips on disk, so that judging resumes clip by clip and processes share it.

A folder of JSON-lines files, a new one for each process that adds to it: `rank-0-0.jsonl`, by its rank and the files of
that rank before. A line holds a record and its key: a hash over all that the record depends on (the suite and its
options, the version and commit of avd, the clip's identity and prompt). Records of another key are passed over, and so
are lines that a crash has damaged: their clips are measured again. One launch at a time holds the folder, and its first
process the lock.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from avd.evaluation.suite import Clip, ClipRecord, ClipSuite, Prompt, Shape
from avd.files import LOCK_FILE, FolderLock, append_json_line
from avd.types import CountProgress

_POLL = 1.0
"""Seconds between looks at what other processes have measured."""


class RecordFolder:
    """The records of a suite in `folder`, which is made when it is held or the first is added.

    `code` is the version of the code that measures, as `code_version` has it: the same in all processes of a launch.
    """

    def __init__(self, folder: Path, suite: ClipSuite, rank: int = 0, code: str = "") -> None:
        self._folder = folder
        self._about = [suite.name, _options(suite), code]
        self._added: list[dict[str, Any]] = []
        """The lines of this process, to be written again should its file be lost."""
        self._found: dict[str, ClipRecord] = {}
        self._read: dict[Path, int] = {}
        """How many bytes of each file have been read."""
        self._refresh()
        earlier = len(list(folder.glob(f"rank-{rank}-*.jsonl")))
        self._own = folder / f"rank-{rank}-{earlier}.jsonl"

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keeps other commands out of the folder, inside the block. Raises `FolderInUse` where one is in it."""
        self._folder.mkdir(parents=True, exist_ok=True)
        lock = FolderLock(self._folder, f"the records {self._folder}")
        lock.acquire()
        try:
            yield
        finally:
            (self._folder / LOCK_FILE).unlink(missing_ok=True)
            lock.release()
            with suppress(OSError):  # something is in it
                self._folder.rmdir()

    def has(self, clip: Clip) -> bool:
        """Whether a clip has been measured."""
        return self._key(clip) in self._found

    def add(self, clip: Clip, record: ClipRecord) -> None:
        """Keep the record of a clip. Raises UserError where the system refuses."""
        assert clip.identity, f"{clip.name} has no identity to be found again by"
        self._folder.mkdir(parents=True, exist_ok=True)
        line = {"key": self._key(clip), **asdict(record)}
        append_json_line(self._own, line)
        self._added.append(line)

    def wait(self, clips: Sequence[Clip], progress: CountProgress) -> list[ClipRecord]:
        """The records of all clips, in their order, once they are there, whoever makes them."""
        keys = [self._key(clip) for clip in clips]
        while True:
            self._refresh()
            missing = sum(key not in self._found for key in keys)
            progress(len(keys) - missing, len(keys))
            if not missing:
                # by the names that clips have now: a record may be of an earlier command, which sampled them elsewhere
                return [replace(self._found[key], clip=clip.name) for key, clip in zip(keys, clips, strict=True)]
            self._restore()
            time.sleep(_POLL)

    def remove(self) -> None:
        """Remove the records that this process knows of."""
        for path in self._read:
            path.unlink(missing_ok=True)

    def _key(self, clip: Clip) -> str:
        about = [*self._about, clip.identity, asdict(clip.prompt)]
        return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]

    def _refresh(self) -> None:
        """Read what has been added to the folder since the last look, up to the last complete line of each file."""
        for path in sorted(self._folder.glob("rank-*.jsonl")):
            start = self._read.get(path, 0)
            with path.open("rb") as file:
                file.seek(start if start <= path.stat().st_size else 0)  # a lost file is written again
                start = file.tell()
                data = file.read()
            complete = data[: data.rfind(b"\n") + 1]
            self._read[path] = start + len(complete)
            self._found |= _records(complete)

    def _restore(self) -> None:
        """Write what this process has measured again if its file is gone: others wait for it too."""
        if self._added and not self._own.exists():
            self._folder.mkdir(parents=True, exist_ok=True)
            for line in self._added:
                append_json_line(self._own, line)


def _options(suite: Any) -> dict[str, Any]:
    """A suite is a dataclass of its options."""
    return asdict(suite)


def _records(data: bytes) -> dict[str, ClipRecord]:
    """The records on lines of JSON, by key; what is no record is passed over."""
    found = {}
    for line in data.splitlines():
        try:
            fields = json.loads(line)
            prompt, shape = Prompt(**fields["prompt"]), Shape(**fields["shape"])
            found[fields["key"]] = ClipRecord(fields["clip"], prompt, shape, fields["values"])
        except (ValueError, TypeError, KeyError):
            continue
    return found
