"""What a run's measurements are compared with: the real clips, and the teacher's videos of the same prompts and noise.

Both are measured once per run. A large teacher takes long over its videos, so each clip is noted in the run's folder as
soon as it is measured, and a run that was stopped or killed meanwhile continues with the rounds that are left. Which
these are, the first rank reads and the others hear from it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from avd.distillation.monitoring.clips import Round
from avd.distillation.monitoring.measuring import ClipMeter, Measured
from avd.engine.ranks import Ranks
from avd.engine.stopping import Heed
from avd.files import append_json_line, read_json_lines, read_text, write_json, write_json_lines
from avd.measures.video import PixelStats
from avd.types import CountProgress

REFERENCES_FILE = "references.json"
CLIPS_FILE = "references.jsonl"
"""A line per clip and reference, until all are measured."""


@dataclass(frozen=True)
class References:
    """Means over the clips."""

    teacher: PixelStats
    real: PixelStats


class ReferenceFinder:
    """Reads a run's references, or measures what is missing of them. `steps` is the number of the teacher's."""

    def __init__(self, folder: Path, meter: ClipMeter, steps: int, ranks: Ranks) -> None:
        self._path, self._clips_path = folder / REFERENCES_FILE, folder / CLIPS_FILE
        self._meter, self._ranks, self._indices = meter, ranks, meter.clips.indices
        self._steps = {"teacher": steps, "real": None}
        self._key = {"clips": self._indices, "teacher_steps": steps}

    def read(self) -> References | None:
        """What an earlier process of the run found, if it answers this recipe; the same on all ranks."""
        found = self._ranks.decide(lambda: _read_references(self._path, self._key))
        return None if found is None else _from_json(found)

    def measure(self, heed: Heed, progress: CountProgress) -> References:
        """Measure the clips that are missing, and keep the references. `progress` counts the clips of both.

        Raises what `heed` does; the clips measured before are kept.
        """
        lines, steps = self._ranks.decide(self._take_up), self._steps["teacher"]
        assert steps is not None
        measures: dict[str, Callable[[list[Round]], Measured]] = {
            "teacher": lambda rounds: self._meter.teacher(rounds, steps, heed),
            "real": lambda rounds: self._meter.real(rounds, heed),
        }
        means, done = {}, 0
        for kind, measure in measures.items():
            stats = {line["clip"]: _stats(line) for line in lines if line["reference"] == kind}
            rounds = [
                turn for turn in self._meter.clips.rounds if any(self._indices[i] not in stats for i in turn.clips)
            ]
            done += len(self._indices) - sum(len(turn.clips) for turn in rounds)
            for turn, found in measure(rounds):
                new = {self._indices[i]: each for i, each in zip(turn.clips, found, strict=True)}
                stats |= new
                self._note(kind, new)
                done += len(new)
                progress(done, 2 * len(self._indices))
            means[kind] = mean_stats([stats[i] for i in self._indices])
        references = References(**means)
        with self._ranks.together():
            if self._ranks.is_main:
                write_json(self._path, {**self._key, **asdict(references)})
                self._clips_path.unlink(missing_ok=True)
        return references

    def _take_up(self) -> list[dict[str, Any]]:
        """Lines of clips that an earlier process measured for this recipe; others, and one cut short, are dropped."""
        if not self._clips_path.exists():
            return []
        lines = [line for line in read_json_lines(self._clips_path) if self._fits(line)]
        write_json_lines(self._clips_path, lines)
        return lines

    def _fits(self, line: Any) -> bool:
        """A recipe's monitors may change between processes."""
        try:
            steps = self._steps[line["reference"]]
            return line["clip"] in self._indices and line["teacher_steps"] == steps and bool(_stats(line))
        except (KeyError, TypeError):
            return False

    def _note(self, kind: str, found: Mapping[int, PixelStats]) -> None:
        with self._ranks.together():
            if not self._ranks.is_main:
                return
            for clip, stats in found.items():
                line = {"reference": kind, "clip": clip, "teacher_steps": self._steps[kind], **asdict(stats)}
                append_json_line(self._clips_path, line, durable=True)


def mean_stats(stats: Sequence[PixelStats]) -> PixelStats:
    """Over clips."""
    columns = zip(*(astuple(each) for each in stats), strict=True)
    return PixelStats(*(float(np.mean(column)) for column in columns))


def _stats(values: Mapping[str, Any]) -> PixelStats:
    return PixelStats(**{field.name: float(values[field.name]) for field in fields(PixelStats)})


def _read_references(path: Path, key: Mapping[str, Any]) -> dict[str, Any] | None:
    """The means in the file, if it answers `key`."""
    try:
        found = json.loads(read_text(path))
        fits = all(found[name] == value for name, value in key.items())
        return {kind: asdict(_stats(found[kind])) for kind in ("teacher", "real")} if fits else None
    except (ValueError, KeyError, TypeError):
        return None


def _from_json(means: Mapping[str, Any]) -> References:
    return References(_stats(means["teacher"]), _stats(means["real"]))
