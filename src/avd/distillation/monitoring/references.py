"""What a run's measurements are compared with: the real clips, and the teacher's videos of the same prompts and noise.

Both are measured once per run. A large teacher takes long over its videos, so each clip is noted in the run's folder as
soon as it is measured, and a run that was stopped or killed meanwhile continues with the rounds that are left. Which
these are, the first rank reads and the others hear from it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from avd.distillation.monitoring.clips import Round
from avd.distillation.monitoring.measuring import ClipMeter, Measured
from avd.distillation.monitoring.suites import MonitorRecord, PixelMonitorSuite
from avd.engine.ranks import Ranks
from avd.engine.stopping import Heed
from avd.files import append_json_line, read_json_lines, read_text, write_json, write_json_lines
from avd.types import CountProgress

REFERENCES_FILE = "references.json"
CLIPS_FILE = "references.jsonl"
"""A line per video and reference, until all are measured."""


@dataclass(frozen=True)
class References:
    """What the suite measures, by name."""

    teacher: dict[str, float]
    real: dict[str, float]


class ReferenceFinder:
    """Reads a run's references, or measures what is missing of them. `steps` is the number of the teacher's."""

    def __init__(self, folder: Path, meter: ClipMeter, steps: int, ranks: Ranks) -> None:
        self._path, self._clips_path = folder / REFERENCES_FILE, folder / CLIPS_FILE
        self._meter, self._suite, self._ranks = meter, meter.suite, ranks
        videos, indices = meter.clips.videos, meter.clips.indices
        self._steps = {"teacher": steps, "real": None}
        self._key: dict[str, Any] = {"clips": indices, "teacher_steps": steps}
        if self._suite.name != PixelMonitorSuite.name:
            self._key |= {"suite": self._suite.name, "further_seeds": [list(each) for each in videos[len(indices) :]]}
        counts = {"teacher": len(videos), "real": len(indices)}
        self._heads = {(kind, i): self._head(kind, i) for kind, count in counts.items() for i in range(count)}

    def read(self) -> References | None:
        """What an earlier process of the run found, if it answers this recipe; the same on all ranks."""
        found = self._ranks.decide(self._read)
        return None if found is None else References(**found)

    def measure(self, heed: Heed, progress: CountProgress) -> References:
        """Measure the videos that are missing, and keep the references. `progress` counts the videos of both.

        Raises what `heed` does; the videos measured before are kept.
        """
        clips, steps = self._meter.clips, self._steps["teacher"]
        assert steps is not None
        ways: dict[str, tuple[list[Round], Callable[[list[Round]], Measured]]] = {
            "teacher": (clips.rounds, lambda rounds: self._meter.teacher(rounds, steps, heed)),
            "real": (clips.real_rounds, lambda rounds: self._meter.real(rounds, heed)),
        }
        noted, summaries, done = self._ranks.decide(self._take_up), {}, 0
        for kind, (rounds, measure) in ways.items():
            records: dict[int, MonitorRecord] = {i: record for of, i, record in noted if of == kind}
            left = [turn for turn in rounds if any(i not in records for i in turn.clips)]
            done += sum(len(turn.clips) for turn in rounds) - sum(len(turn.clips) for turn in left)
            for turn, found in measure(left):
                new = dict(zip(turn.clips, found, strict=True))
                records |= new
                self._note(kind, new)
                done += len(new)
                progress(done, len(self._heads))
            groups = clips.groups if kind == "teacher" else []
            summaries[kind] = self._suite.summarise([records[i] for i in sorted(records)], groups)
        references = References(**summaries)
        with self._ranks.together():
            if self._ranks.is_main:
                write_json(self._path, {**self._key, **asdict(references)})
                self._clips_path.unlink(missing_ok=True)
        return references

    def _head(self, kind: str, position: int) -> dict[str, Any]:
        """How a line begins: what tells its video from others of this recipe, and of one that was changed since."""
        index, seed = self._meter.clips.videos[position]
        head = {"reference": kind, "clip": index, "teacher_steps": self._steps[kind]}
        return head if self._suite.name == PixelMonitorSuite.name else {**head, "suite": self._suite.name, "seed": seed}

    def _take_up(self) -> list[tuple[str, int, MonitorRecord]]:
        """Reference, position and record of the videos that an earlier process measured for this recipe.

        Other lines, and one cut short, are dropped.
        """
        if not self._clips_path.exists():
            return []
        lines = [(line, self._record(line)) for line in read_json_lines(self._clips_path)]
        write_json_lines(self._clips_path, [line for line, found in lines if found is not None])
        return [found for _, found in lines if found is not None]

    def _record(self, line: Any) -> tuple[str, int, MonitorRecord] | None:
        try:
            record = self._suite.read(line)
            head = {key: value for key, value in line.items() if key not in record}
        except (KeyError, TypeError, AttributeError):
            return None
        places = (place for place, expected in self._heads.items() if head == expected)
        return next(((*place, record) for place in places), None)

    def _read(self) -> dict[str, dict[str, float]] | None:
        try:
            found = json.loads(read_text(self._path))
            kinds = {kind: found.pop(kind) for kind in ("teacher", "real")}
            if found != self._key or any(set(self._suite.measures) - means.keys() for means in kinds.values()):
                return None
            return {kind: {name: float(value) for name, value in means.items()} for kind, means in kinds.items()}
        except (ValueError, KeyError, TypeError, AttributeError):
            return None

    def _note(self, kind: str, found: Mapping[int, MonitorRecord]) -> None:
        with self._ranks.together():
            if not self._ranks.is_main:
                return
            for position, record in found.items():
                append_json_line(self._clips_path, {**self._heads[kind, position], **record}, durable=True)
