"""Which videos a benchmark asks for, and the names that its code finds them by.

A prompt of several entries, or of several dimensions, is sampled once: its video has a name in each place where the
official code wants it. Counts follow from the file of prompts alone.
"""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from avd.evaluation.benchmarks.known import FLICKERING, Benchmark, find_benchmark
from avd.evaluation.benchmarks.prompts import PromptList, read_prompt_list
from avd.types import UserError

_LONGEST_NAME = 255 - len(".writing")
"""Bytes of a name that file systems take, also while the file is being written."""


@dataclass(frozen=True)
class Generation:
    """A video to make: sample `index`, from 0, of a prompt.

    `files` are its names below the benchmark's folder, with forward slashes.
    """

    prompt: str
    index: int
    files: tuple[str, ...]


@dataclass(frozen=True)
class Layout:
    """The folder of a benchmark as its official code expects it."""

    prompts: PromptList
    samples: dict[str, int]
    """Videos per prompt, by dimension."""
    generations: tuple[Generation, ...]
    """Those of one prompt follow one another."""

    @property
    def files(self) -> tuple[str, ...]:
        """The names of all files."""
        return tuple(name for generation in self.generations for name in generation.files)

    def folder_of(self, dimension: str) -> str:
        """The folder that the official code is given for a dimension, below the benchmark's; "" is that itself."""
        return dimension if self.prompts.benchmark.folder_per_dimension else ""

    def files_of(self, dimension: str) -> tuple[str, ...]:
        """The names of the files that are judged in a dimension. Raises UserError for one that is not there."""
        if dimension not in self.samples:
            raise UserError(f"{self.prompts.path} has no dimension {dimension!r}: name one of {list(self.samples)}")
        count, benchmark = self.samples[dimension], self.prompts.benchmark
        judged = dict.fromkeys(entry.prompt for entry in self.prompts.entries if dimension in entry.dimensions)
        return tuple(_file_name(benchmark, prompt, dimension, index) for prompt in judged for index in range(count))

    def colliding(self) -> list[tuple[str, ...]]:
        """Groups of prompts whose files are one on a disk that does not tell upper from lower case."""
        groups = defaultdict(set)
        for generation in self.generations:
            for name in generation.files:
                groups[unicodedata.normalize("NFC", name).casefold()].add((name, generation.prompt))
        return list(dict.fromkeys(tuple(sorted(p for _, p in group)) for group in groups.values() if len(group) > 1))

    def summary(self) -> str:
        """What there is to make, in a line."""
        entries, prompts = len(self.prompts.entries), len(self.prompts.prompts)
        text = f"{entries:,} entries, {prompts:,} prompts, {len(self.generations):,} videos"
        names = len(self.files)
        return text if names == len(self.generations) else f"{text} under {names:,} names"


def make_layout(prompts: PromptList, *, flickering_samples: int | None = None) -> Layout:
    """The layout of a benchmark. `flickering_samples` are the videos per prompt of VBench's `temporal_flickering`.

    Raises UserError for a prompt that no file can be named by, two prompts of one name, and `flickering_samples` of a
    benchmark without that dimension, or fewer than other dimensions have.
    """
    benchmark = prompts.benchmark
    samples = {name: benchmark.more_samples.get(name, benchmark.samples) for name in prompts.dimensions}
    if flickering_samples is not None:
        if FLICKERING not in samples:
            raise UserError(f"{benchmark.title} has no {FLICKERING}: leave --flickering-samples out")
        if flickering_samples < benchmark.samples:
            raise UserError(
                f"{FLICKERING} needs at least {benchmark.samples} samples, and {flickering_samples} are given"
            )
        samples[FLICKERING] = flickering_samples
    names: dict[tuple[str, int], dict[str, None]] = {}
    for prompt in prompts.prompts:
        names |= {(prompt, index): {} for index in range(max(samples.values()))}
    for entry in prompts.entries:
        for dimension in entry.dimensions:
            for index in range(samples[dimension]):
                names[entry.prompt, index][_file_name(benchmark, entry.prompt, dimension, index)] = None
    generations = tuple(Generation(prompt, index, tuple(files)) for (prompt, index), files in names.items() if files)
    _check_names(prompts, generations)
    return Layout(prompts, samples, generations)


def read_layout(suite: str, info: Path | None, *, flickering_samples: int | None = None) -> Layout:
    """The layout of the benchmark called `suite`, with the prompts at `info`, as `read_prompt_list` finds them.

    Raises UserError for a benchmark that is not known, where `info` is None, and as `make_layout` does.
    """
    benchmark = find_benchmark(suite)
    if info is None:
        raise UserError(
            f"--suite {suite} needs --suite-info: name {benchmark.info_file} of the package {benchmark.name}, or "
            "the folder that holds it"
        )
    return make_layout(read_prompt_list(benchmark, info), flickering_samples=flickering_samples)


def _file_name(benchmark: Benchmark, prompt: str, dimension: str, index: int) -> str:
    """Blanks stay where they are, at the end too: the official code looks for the name as it is."""
    name = f"{prompt[: benchmark.name_length]}-{index}.mp4"
    return f"{dimension}/{name}" if benchmark.folder_per_dimension else name


def _check_names(prompts: PromptList, generations: Collection[Generation]) -> None:
    owners: dict[str, str] = {}
    folders = 1 if prompts.benchmark.folder_per_dimension else 0
    for generation in generations:
        for file in generation.files:
            *above, last = file.split("/")
            if len(above) != folders or "\0" in file or len(last.encode()) > _LONGEST_NAME:
                raise UserError(f"{prompts.path}: no file can be named by the prompt {generation.prompt!r}")
            other = owners.setdefault(file, generation.prompt)
            if other != generation.prompt:
                raise UserError(f"{prompts.path}: {file!r} would be the file of two prompts, {other!r} is one")
