"""Rows of the official benchmarks: a folder of videos, checked, judged by official code, and the protocol of it all."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from avd.evaluation.benchmarks.check import check_folder
from avd.evaluation.benchmarks.known import FLICKERING
from avd.evaluation.benchmarks.layout import make_layout
from avd.evaluation.benchmarks.manifest import Manifest
from avd.evaluation.benchmarks.official_package import OfficialPackage, find_package
from avd.evaluation.benchmarks.official_run import DimensionJob, OfficialRun
from avd.evaluation.benchmarks.prompts import PromptList, read_prompt_list
from avd.evaluation.benchmarks.scoring import Dimension, OfficialSuite
from avd.evaluation.provenance import code_version, machine
from avd.evaluation.rows import Overlap, Row
from avd.evaluation.trained_prompts import describe_overlap, find_overlap
from avd.files import check_can_make
from avd.types import CountProgress, UserError


class OfficialFolder:
    """A folder of a benchmark's videos, to be judged in `dimensions` (all without names) by an official package.

    Results are kept beside it, in `{folder}.{suite}/`, a folder per dimension.
    """

    def __init__(
        self,
        suite: OfficialSuite,
        package: OfficialPackage,
        prompts: PromptList,
        folder: Path,
        dimensions: Collection[str] = (),
    ) -> None:
        """Raises UserError for a dimension that there is not, and for a manifest of other prompts."""
        self._suite, self._package, self._prompts, self._folder = suite, package, prompts, folder
        self._manifest = Manifest.read(folder)
        if self._manifest is not None:
            _check_manifest(self._manifest, suite.name, prompts, folder)
        self._layout = make_layout(prompts, flickering_samples=self._flickering_samples())
        self._dimensions = suite.scoring.choose(dimensions)
        for dimension in self._dimensions:
            if dimension.name not in self._layout.samples:
                raise UserError(f"{prompts.path} has no prompts of {dimension.name}: name others with --dimensions")
        self._check_filter()
        self._cache = folder.absolute().with_name(f"{folder.absolute().name}.{suite.name}")
        check_can_make(self._cache / "log")
        self._overlap = self._find_overlap()

    def _flickering_samples(self) -> int | None:
        """Those that the manifest says were made, where the benchmark has the dimension."""
        return None if self._manifest is None else self._manifest.plan.samples.get(FLICKERING)

    def _takes_still(self, dimension: str) -> bool:
        """Whether the official filter first chooses videos that stand still: where there are more to choose from."""
        return dimension == FLICKERING and self._layout.samples[dimension] > self._prompts.benchmark.samples

    def _check_filter(self) -> None:
        """Raise UserError for prompts that the official filter would pass over: it has the package's own list."""
        if self._prompts.path == self._package.folder / self._prompts.benchmark.info_file:
            return
        if any(self._takes_still(dimension.name) for dimension in self._dimensions):
            own = read_prompt_list(self._prompts.benchmark, self._package.folder)
            known = {entry.prompt for entry in own.entries if FLICKERING in entry.dimensions}
            judged = dict.fromkeys(entry.prompt for entry in self._prompts.entries if FLICKERING in entry.dimensions)
            strange = [prompt for prompt in judged if prompt not in known]
            if strange:
                raise UserError(
                    f"{own.path} lacks {len(strange)} prompts of {FLICKERING} of {self._prompts.path}, such as "
                    f"{strange[0]!r}, and the official filter takes no others: leave {FLICKERING} out with --dimensions"
                )

    def report_overlap(self) -> list[str]:
        """What a user should know of prompts that the model was trained on, one line each."""
        return [] if self._overlap is None else describe_overlap(self._overlap, self._suite.name)

    def check(self, progress: CountProgress) -> dict[str, Any]:
        """Decode every file of the dimensions, and return the protocol. What nobody recorded of it is None.

        Raises UserError for a file that is missing, stray or broken.
        """
        names = [dimension.name for dimension in self._dimensions]
        shape = check_folder(self._layout, self._folder, progress, dimensions=names)
        if self._manifest is not None:
            made = self._manifest.protocol
        else:
            size = f"{shape.height}x{shape.width}"
            made = {"suite": self._suite.name, "info": self._prompts.digest, "prompts": None}
            made |= {"samples": self._layout.samples, "fps": shape.fps, "frames": shape.frames, "size": size}
        return made | {"package": self._package.label}

    def judge(self, name: str, protocol: dict[str, Any], progress: CountProgress, say: Callable[[str], None]) -> Row:
        """The row called `name`, of the protocol that `check` found.

        `say` gets a line for a dimension in which not every video could be judged. Raises UserError for results that a
        total must not be made of.
        """
        scoring, sampled = self._suite.scoring, {} if self._manifest is None else self._manifest.making.sampler
        run = OfficialRun(scoring, self._package, self._cache, self._prompts.path, self._suite.arguments())
        jobs = [self._job(dimension) for dimension in self._dimensions]
        results = run.judge(jobs, progress)
        for key, result in results.items():
            if result.unjudged:
                count = result.judged + result.unjudged
                silent = f", and none of {result.silent} prompts" if result.silent else ""
                say(f"{key} of {name}: the official code could judge {result.judged} of {count} videos{silent}")
        steps = sampled.get("steps") or len(sampled.get("timesteps", ())) or None
        return Row(
            name=name,
            steps=steps,
            network_calls=steps and steps * (1 if sampled.get("guidance", 1.0) == 1.0 else 2),
            seconds_per_video=None,
            videos=len({job.folder / file for job in jobs for file in job.files}),
            seed=0 if self._manifest is None else self._manifest.plan.seed,
            scores={self._suite.name: scoring.scores({key: result.score for key, result in results.items()})},
            recipe=None,
            code_version=code_version(),
            machine=machine(),
            overlap=self._overlap,
            protocol=protocol,
        )

    def _find_overlap(self) -> Overlap | None:
        """The overlap of the judged prompts with those of the model's run, if the manifest names one that is here."""
        if self._manifest is None:
            return None
        names = {dimension.name for dimension in self._dimensions}
        judged = [entry.prompt for entry in self._prompts.entries if names & set(entry.dimensions)]
        texts = {video.prompt: video.text for video in self._manifest.plan.videos}
        return find_overlap(self._manifest.making.model, judged, texts)

    def _job(self, dimension: Dimension) -> DimensionJob:
        name, samples = dimension.name, self._layout.samples[dimension.name]
        files = tuple(file.rpartition("/")[2] for file in self._layout.files_of(name))
        entries = [entry.prompt for entry in self._prompts.entries if name in entry.dimensions]
        by_prompt = {
            prompt: files[start * samples : (start + 1) * samples]
            for start, prompt in enumerate(dict.fromkeys(entries))
        }
        still = self._takes_still(name)
        judged = self._prompts.benchmark.samples if still else samples
        videos = tuple(by_prompt[prompt][:judged] for prompt in entries)
        folder = self._folder / self._layout.folder_of(name)
        key = {
            "manifest": None if self._manifest is None else self._manifest.digest,
            "info": self._prompts.digest,
            "files": _fingerprint(folder, files),
        }
        return DimensionJob(
            replace(dimension, partial_list=dimension.partial_list or still), folder, files, videos, key, still
        )


def open_folders(
    suite: OfficialSuite,
    named: Mapping[str, Path],
    *,
    python: Path | None,
    info: Path | None = None,
    dimensions: Collection[str] = (),
) -> dict[str, OfficialFolder]:
    """The folders by the names of their rows, to be judged by the official package of `python`.

    `info` is the benchmark's list of prompts, or where it lies; None is the package's. Raises UserError for what cannot
    be judged.
    """
    for folder in named.values():
        if not folder.is_dir() or (folder / "model_index.json").exists():
            raise UserError(f"{folder} is no folder of videos: make one with `avd generate MODEL --suite {suite.name}`")
    package = find_package(suite.scoring, python)
    prompts = read_prompt_list(suite.scoring.benchmark, info or package.folder)
    return {name: OfficialFolder(suite, package, prompts, folder, dimensions) for name, folder in named.items()}


def _check_manifest(manifest: Manifest, suite: str, prompts: PromptList, folder: Path) -> None:
    if manifest.plan.suite != suite:
        raise UserError(f"{folder} holds the videos of suite {manifest.plan.suite}: name it with --suite")
    if manifest.plan.info != prompts.digest:
        raise UserError(
            f"{folder} holds videos for other prompts than those of {prompts.path}: name the file that they were made "
            "for with --suite-info"
        )


def _fingerprint(folder: Path, files: Collection[str]) -> str:
    """Changes with the files' names, sizes and times of change, whatever the manifest says they are."""
    found = hashlib.sha256()
    for name in files:
        status = (folder / name).stat()
        found.update(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return found.hexdigest()
