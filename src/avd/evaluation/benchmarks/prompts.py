"""Prompts of a benchmark, from the file that the benchmark ships, and other texts for the same prompts.

Nothing is copied into this project: the user names the file, or a folder in which it lies.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from avd.evaluation.benchmarks.known import Benchmark
from avd.files import as_text, read_text
from avd.types import UserError


@dataclass(frozen=True)
class BenchmarkEntry:
    """A prompt, and the dimensions that its videos are judged in."""

    prompt: str
    dimensions: tuple[str, ...]


@dataclass(frozen=True)
class PromptList:
    """The entries of a benchmark in the order of its file. A prompt may have several entries."""

    benchmark: Benchmark
    path: Path
    digest: str
    """SHA-256 of what the file says, however it is laid out."""
    entries: tuple[BenchmarkEntry, ...]

    @property
    def prompts(self) -> tuple[str, ...]:
        """Every prompt once, in order."""
        return tuple(dict.fromkeys(entry.prompt for entry in self.entries))

    @property
    def dimensions(self) -> tuple[str, ...]:
        """Every dimension once, in order, spelt as the file spells it."""
        return tuple(dict.fromkeys(name for entry in self.entries for name in entry.dimensions))


@dataclass(frozen=True)
class Rewritten:
    """The text that is sampled in place of each prompt. `digest` is the SHA-256 of all of them."""

    texts: dict[str, str]
    digest: str


def read_prompt_list(benchmark: Benchmark, place: Path) -> PromptList:
    """The prompts of a benchmark. `place` is its JSON file, its package, a checkout, or a site-packages folder.

    Raises UserError, in one line, if there is no such file, or if it is not what it should be.
    """
    path = _locate(benchmark, place)
    try:
        records = json.loads(as_text(path.read_bytes(), str(path)))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path} is broken JSON ({error.msg}, line {error.lineno}): take it from the package"
        ) from error
    if not isinstance(records, list) or not records:
        raise UserError(f"{path} holds no list of prompts: name the {benchmark.info_file} of {benchmark.name}")
    entries = tuple(_entry(f"{path}, entry {number}", record) for number, record in enumerate(records, start=1))
    unknown = next((name for entry in entries for name in entry.dimensions if name not in benchmark.dimensions), None)
    if unknown is not None:
        raise UserError(
            f"{path} has the dimension {unknown!r}, which is none of {benchmark.title}: name the {benchmark.info_file} "
            f"of {benchmark.name}, or another --suite"
        )
    digest = hashlib.sha256(json.dumps(records, sort_keys=True).encode()).hexdigest()
    return PromptList(benchmark, path, digest, entries)


def read_rewritten(path: Path, prompts: PromptList, originals: Path | None = None) -> Rewritten:
    """Texts in place of the prompts, from a file with a line per prompt.

    The lines follow those of the text file `originals`; without it, the entries of the benchmark. Of a prompt that
    stands there twice the last text counts, as the later video takes the place of the earlier in the official loop.

    Raises UserError for another number of lines, an empty line, and a prompt of the benchmark without a text.
    """
    texts = _lines(path)
    of = [entry.prompt for entry in prompts.entries] if originals is None else _lines(originals)
    order = f"{prompts.path} has entries" if originals is None else f"{originals} has"
    if len(texts) != len(of):
        help = "name the list that it follows with --originals" if originals is None else "name the list it follows"
        raise UserError(f"{path} has {len(texts)} lines and {order} {len(of)}: {help}")
    empty = next((number for number, text in enumerate(texts, start=1) if not text), None)
    if empty is not None:
        raise UserError(f"{path}, line {empty}, is empty: write the prompt that is to be sampled")
    known = dict(zip(of, texts, strict=True))
    missing = next((prompt for prompt in prompts.prompts if prompt not in known), None)
    if missing is not None:
        raise UserError(f"{originals} lacks the prompt {missing!r} of {prompts.path}: name a complete list")
    chosen = {prompt: known[prompt] for prompt in prompts.prompts}
    digest = hashlib.sha256(json.dumps(chosen, ensure_ascii=False, sort_keys=True).encode()).hexdigest()
    return Rewritten(chosen, digest)


def _locate(benchmark: Benchmark, place: Path) -> Path:
    if not place.is_dir():
        if place.exists():
            return place
        raise UserError(f"there is no {place}: name {benchmark.info_file}, or a folder that it is in")
    found = next((place / inner for inner in benchmark.info_places if (place / inner).is_file()), None)
    if found is None:
        places = ", ".join(benchmark.info_places)
        raise UserError(f"{place} holds none of {places}: name {benchmark.info_file} itself")
    return found


def _entry(where: str, record: Any) -> BenchmarkEntry:
    prompt, dimensions = (record.get(key) if isinstance(record, dict) else None for key in ("prompt_en", "dimension"))
    if not isinstance(prompt, str) or not prompt.strip():
        raise UserError(f"{where}: 'prompt_en' is {prompt!r}, a text is needed")
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{where}: 'prompt_en' is {prompt!r}, which has half a character: take it from the package"
        ) from error
    if not isinstance(dimensions, list) or not dimensions or not all(isinstance(each, str) for each in dimensions):
        raise UserError(f"{where}: 'dimension' is {dimensions!r}, a list of names is needed")
    return BenchmarkEntry(prompt, tuple(dimensions))


def _lines(path: Path) -> Sequence[str]:
    """Lines without the blanks around them, up to the last that is not empty."""
    return [line.strip() for line in read_text(path).rstrip().split("\n")]
