"""Judging dimensions with the official code: one process each, spread over the GPUs, and never twice.

What a dimension left is kept in a folder of its own below the cache: `result.json`, which says what was judged and by
which code, the official JSON as it was written, and `log.txt`, all that the code printed. A dimension whose
`result.json` says what is asked for now is read, not run. The official code is given a folder of links to the videos of
the dimension, and one to work in, and both go with it: it writes files among the videos that it judges and where it is
started (VBench-2.0's Instance_Preservation does), and what is left there spoils the scores of the next.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from threading import Lock
from typing import Any

from avd.evaluation.benchmarks.official_package import RUNNER, OfficialPackage, last_line, official_environment
from avd.evaluation.benchmarks.results import OfficialResult, read_official
from avd.evaluation.benchmarks.scoring import Dimension, Scoring
from avd.files import FolderLock, read_json, write_json
from avd.types import CountProgress, UserError

_KEY_FILE, _LOG_FILE, _REQUEST_FILE = "result.json", "log.txt", "request.json"
_LINKS, _STILL, _WORK = "videos", "still", "work"
_NAME = "official"
"""What the official code is asked to call its files."""


@dataclass(frozen=True)
class DimensionJob:
    """A dimension to judge."""

    dimension: Dimension
    folder: Path
    """Where its files are."""
    files: tuple[str, ...]
    """Their names."""
    videos: tuple[tuple[str, ...], ...]
    """The names that the result must have, by entry of the benchmark's list: a prompt that stands there twice is judged
    twice."""
    key: dict[str, Any]
    """What the result depends on."""
    still: bool = False
    """Whether the official code is to choose the videos that are still, and to judge those."""


class OfficialRun:
    """Judges dimensions of a folder of videos with an official package; results are kept in `cache`."""

    def __init__(
        self,
        scoring: Scoring,
        package: OfficialPackage,
        cache: Path,
        info: Path,
        arguments: Mapping[str, Any],
    ) -> None:
        self._scoring, self._package, self._cache, self._info = scoring, package, cache, info
        self._arguments = dict(arguments)
        self._free: SimpleQueue[str | None] = SimpleQueue()
        for device in package.devices or (None,):
            self._free.put(device)
        self._running: set[subprocess.Popen[bytes]] = set()
        self._stopped = False
        self._lock = Lock()

    def judge(self, jobs: Sequence[DimensionJob], progress: CountProgress) -> dict[str, OfficialResult]:
        """Results by key of their dimension.

        A dimension that fails does not end the others. Raises UserError, once all have ended, for those that failed.
        """
        results, failures = {}, []
        progress(0, len(jobs))
        with ThreadPoolExecutor(max(1, len(self._package.devices))) as pool:
            futures: dict[Future[OfficialResult], DimensionJob] = {pool.submit(self._judge, job): job for job in jobs}
            try:
                for done, future in enumerate(as_completed(futures), start=1):
                    try:
                        results[futures[future].dimension.key] = future.result()
                    except UserError as error:
                        failures.append(str(error))
                    progress(done, len(jobs))
            except BaseException:
                self._stop()
                pool.shutdown(cancel_futures=True)
                raise
        if failures:
            others = f" ({len(results)} of {len(jobs)} dimensions are done and kept)"
            raise UserError("; ".join(failures) + others)
        return results

    def _judge(self, job: DimensionJob) -> OfficialResult:
        folder = self._cache / job.dimension.key
        folder.mkdir(parents=True, exist_ok=True)
        lock = FolderLock(folder, str(folder))
        lock.acquire()
        try:
            return self._find(job) or self._run(job, folder)
        finally:
            lock.release()

    def _find(self, job: DimensionJob) -> OfficialResult | None:
        """The result that is kept for a job, if there is one."""
        path, official = self._cache / job.dimension.key / _KEY_FILE, self._official_file(job)
        if not (path.exists() and official.exists()):
            return None
        if read_json(path, "the result", "remove it").get("key") != self._key(job):
            return None
        return read_official(official, job.dimension, job.videos)

    def _run(self, job: DimensionJob, folder: Path) -> OfficialResult:
        (folder / _KEY_FILE).unlink(missing_ok=True)
        self._official_file(job).unlink(missing_ok=True)
        _clear(folder)  # of a run that was killed
        _link(job, folder / _LINKS)
        device = self._free.get()
        try:
            code = self._call(job, folder, device)
        finally:
            self._free.put(device)
        _clear(folder)
        if code:
            log = folder / _LOG_FILE
            reason = last_line(log.read_text(encoding="utf-8", errors="replace"))
            raise UserError(f"{job.dimension.name}: the official code ended with code {code} ({reason}): see {log}")
        result = read_official(self._official_file(job), job.dimension, job.videos)
        write_json(folder / _KEY_FILE, {"score": result.score, "key": self._key(job)})
        return result

    def _call(self, job: DimensionJob, folder: Path, device: str | None) -> int:
        """The exit code of a process that judges the linked videos."""
        folder = folder.absolute()
        request = {
            "package": self._scoring.benchmark.name,
            "entry": self._scoring.entry,
            "dimension": job.dimension.name,
            "videos": str(folder / _LINKS),
            "work": str(folder / _WORK),
            "info": str(self._info.absolute()),
            "output": str(folder),
            "name": _NAME,
            "still": str(folder / _STILL) if job.still else None,
            "device": "cpu" if device is None else "cuda",
            "arguments": self._arguments,
        }
        write_json(folder / _REQUEST_FILE, request)
        command = [str(self._package.python), str(RUNNER), "run", str(folder / _REQUEST_FILE)]
        environment = official_environment(os.environ, device)
        with (folder / _LOG_FILE).open("wb") as log:
            with self._lock:
                if self._stopped:
                    raise UserError(f"{job.dimension.name}: stopped before it began")
                # It ends when its standard input closes: with this process, however this ends.
                process = subprocess.Popen(
                    command, env=environment, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT
                )
                self._running.add(process)
            try:
                return process.wait()
            finally:
                assert process.stdin is not None
                process.stdin.close()
                with self._lock:
                    self._running.discard(process)

    def _stop(self) -> None:
        """End all processes, and begin no other."""
        with self._lock:
            self._stopped = True
            for process in self._running:
                process.kill()

    def _official_file(self, job: DimensionJob) -> Path:
        return self._cache / job.dimension.key / f"{_NAME}_eval_results.json"

    def _key(self, job: DimensionJob) -> dict[str, Any]:
        return {**job.key, "code": self._package.code, "arguments": self._arguments}


def _link(job: DimensionJob, links: Path) -> None:
    """Make a folder of links to the job's videos."""
    links.mkdir()
    for name in job.files:
        (links / name).symlink_to((job.folder / name).absolute())


def _clear(folder: Path) -> None:
    """Remove what a dimension's process was given, and what it wrote there."""
    for name in (_LINKS, _STILL, _WORK):
        shutil.rmtree(folder / name, ignore_errors=True)
