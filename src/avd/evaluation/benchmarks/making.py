"""The videos of a benchmark, made by a model into the folder that the official code judges.

A video is made once, under the first of its names; the others are hard links. Nothing but videos lies in the folder,
and all of it follows from the manifest beside it, so a command that was cut short makes what is missing.
"""

from __future__ import annotations

import filecmp
import os
import tempfile
from pathlib import Path

from avd.evaluation.benchmarks.known import FPS
from avd.evaluation.benchmarks.layout import Layout
from avd.evaluation.benchmarks.manifest import (
    BenchmarkPlan,
    Making,
    Manifest,
    check_same,
    manifest_file,
    share_of,
)
from avd.files import check_can_make, is_unfinished, unfinished, write_atomically
from avd.sampling.generation import Wanted
from avd.sampling.samplers import Sampler
from avd.types import UserError

_VIDEO_SUFFIXES = {".mp4", ".webm", ".gif"}


def check_disk(layout: Layout, folder: Path) -> str | None:
    """What to know of a layout's names on the disk of `folder`, in a line; None where there is nothing.

    Raises UserError for a disk on which two videos would be one file.
    """
    pairs = "; ".join(" and ".join(map(repr, prompts)) for prompts in layout.colliding())
    if not pairs:
        return None
    if ignores_case(next(place for place in folder.absolute().parents if place.is_dir())):
        raise UserError(
            f"the disk of {folder} does not tell upper from lower case, by which alone the names of {pairs} differ: "
            "name a folder on another disk"
        )
    return f"names that differ in case alone: {pairs}; on a disk that ignores case they would be one file"


def ignores_case(folder: Path) -> bool:
    """Whether `folder` is on a disk that does not tell upper from lower case. Raises UserError if it is read-only."""
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix="case-") as file:
            path = Path(file.name)
            return path.with_name(path.name.swapcase()).exists()
    except OSError as error:
        raise UserError(f"cannot write into {folder}: {error.strerror}") from error


class BenchmarkFolder:
    """A folder that this process, of one or several, fills with its share of a plan's videos."""

    def __init__(self, folder: Path, plan: BenchmarkPlan, *, rank: int = 0, size: int = 1) -> None:
        """Raises UserError for a folder that cannot be made, or that holds anything else."""
        self._folder, self._plan = folder, plan
        self._share = share_of(plan.videos, rank, size)
        self._by_path = {folder / video.files[0]: video for video in self._share}
        self._found = self._check()

    def wanted(self) -> list[Wanted]:
        """The videos of this process."""
        return [Wanted(video.text, video.seed, path) for path, video in self._by_path.items()]

    def begin(self, sampler: Sampler, model: str) -> Making:
        """Write the manifest, unless it is there, and say how all videos are made.

        `model` is the name it goes by. Raises UserError where the folder is being filled by another command.
        """
        if Path(model).is_dir():
            model = str(Path(model).resolve())  # judging looks for its run, from wherever it is started
        settings = sampler.model.settings
        height, width = (side + side % 2 for side in (settings.height, settings.width))  # as files of 4:2:0 are padded
        making = Making(model, sampler.description, settings.frames, height, width, FPS, settings.fps, sampler.identity)
        found = self._found or Manifest(self._plan, making).write(self._folder)
        check_same(self._folder, found.plan, self._plan)
        check_same(self._folder, found.making, making)
        return making

    def link_existing(self) -> None:
        """Give the videos of this process that are there their other names."""
        for path in self._by_path:
            if path.exists():
                self.link(path)

    def link(self, path: Path) -> None:
        """Give a video that is there its other names."""
        for name in self._by_path[path].files[1:]:
            _link(path, self._folder / name)

    def _check(self) -> Manifest | None:
        if self._folder.suffix.lower() in _VIDEO_SUFFIXES or self._folder.is_file():
            raise UserError(f"output {self._folder} is a file: a benchmark's videos need a folder")
        check_can_make(manifest_file(self._folder))
        there = _files_in(self._folder)  # before the manifest, which other processes write before any video
        found = Manifest.read(self._folder)
        if found is None and there:
            raise UserError(
                f"output {self._folder} holds {there[0]!r} and has no {manifest_file(self._folder).name} beside it: "
                "name a new folder"
            )
        if found is not None:
            check_same(self._folder, found.plan, self._plan)
        planned = {name for video in self._plan.videos for name in video.files}
        stray = next((name for name in there if name not in planned), None)
        if stray is not None:
            raise UserError(f"output {self._folder} holds {stray!r}, which is no video of the benchmark: remove it")
        return found


def _files_in(folder: Path) -> list[str]:
    """Files below a folder, but for those that are being written."""
    paths = (path for path in sorted(folder.rglob("*")) if not path.is_dir() and not is_unfinished(path))
    return [path.relative_to(folder).as_posix() for path in paths]


def _link(source: Path, target: Path) -> None:
    if target.exists():
        if not target.samefile(source) and not filecmp.cmp(source, target, shallow=False):
            raise UserError(
                f"output {target} is not the same video as {source}: remove it and run the same command again"
            )
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    writing = unfinished(target)
    writing.unlink(missing_ok=True)  # it may be a link, through which writing would change the source
    try:
        os.link(source, writing)
    except OSError:  # a disk without hard links
        write_atomically(target, source.read_bytes())
    else:
        os.replace(writing, target)
