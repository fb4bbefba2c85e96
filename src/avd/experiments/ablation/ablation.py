"""An ablation: from a plan to its jobs, and from what they left on disk to results.

    OUTPUT/ROW-SEED/             a row at a seed: run/ (its run), row.json, shown.safetensors
    OUTPUT/ROW@VALUE-SEED/       the same with another value of its knob than the recipe's own
    OUTPUT/tuning/               the trials, likewise, and rendered/
    OUTPUT/rendered/             the truth
    OUTPUT/results.json          all rows that are there

Killed anywhere and run again, it does what is missing, and several processes may share a folder (`jobs.work`). Which
value a knob has follows from the trials on disk, once all of a row's are there (`tuning.choose`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from safetensors.numpy import load_file

from avd.config import AblationRecipe, Recipe, RowRecipe, load_recipe
from avd.engine.sources import world_of
from avd.evaluation.rows import Results, Row, write_results
from avd.evaluation.staleness import stale_reasons
from avd.evaluation.suites.native import NativeSuite
from avd.evaluation.suites.world import WorldSuite
from avd.experiments import Bars, Say
from avd.experiments.ablation.jobs import AblationJob, work
from avd.experiments.ablation.orderings import comparison_sentences, order_sentences
from avd.experiments.ablation.students import ROW_FILE, SHOWN_FILE, JudgedRow, Judging, RenderedRow, TrainedRun
from avd.experiments.ablation.tuning import Trial, choose
from avd.experiments.measuring import check_one_process
from avd.experiments.training import check_run, check_sampled, is_trained, with_forwards
from avd.files import FolderInUse, FolderLock
from avd.models.family import read_facts
from avd.types import UserError
from avd.world import World

_UNWATCHED = ("monitors.every=0", "training.sample_every=0", "training.keep_checkpoints=1")
"""Changes of every recipe: what an update takes is the method's alone, and runs are many."""
_TUNING_CAPTIONS = 1_000_000
"""The first held-out scene that tuning is asked for: past all that may judge."""
UNTUNED = "untuned"
_POLL = 0.2
"""Seconds between tries to write the results."""


@dataclass(frozen=True)
class Ablation:
    """A plan in a folder; `changes` are KEY=VALUE of every recipe."""

    plan: AblationRecipe
    output: Path
    changes: tuple[str, ...] = ()

    def run(self, names: Sequence[str], *, tune: bool, bars: Bars, say: Say) -> Results:
        """Do what is missing of the rows called `names`, tune their knobs before if asked, and write `results.json`.

        Raises UserError for a row that there is not, before anything begins as `check_run`, and at the end for what
        failed: trials that fail keep no row from being trained, with the recipe's own value of its knob.
        """
        check_one_process()
        rows = self._select(names)
        self._check(rows)
        failed: list[UserError] = []
        if tune:
            for batch in ([row for row in rows if not row.starts], [row for row in rows if row.starts]):
                trials = self._trial_jobs(batch)
                with _collecting(failed):
                    work(trials, bars, say)
        jobs: list[AblationJob] = [self._rendered]
        for seed in range(self.plan.seeds):
            for row in rows:
                jobs += self._jobs(row, seed)
        try:
            with _collecting(failed):
                work(jobs, bars, say, after=self._write_results)
        finally:
            results = self._write_results()
        if failed:
            raise failed[0]
        return results

    @property
    def fps(self) -> int:
        """Frames per second of all clips."""
        return self._world.fps

    def gather(self) -> Results:
        """All rows that are there, of whichever command and seed."""
        found = [self._rendered.row()] if self._rendered.is_done() else []
        for row in self._rows:
            found += [self._judged(row, seed).row() for seed in self._seeds(row)]
        return Results(rows=found, meta=self._meta(found))

    def _seeds(self, row: RowRecipe) -> list[int]:
        """The seeds at which a row has been judged, in order."""
        label = self._label(row)
        names = (file.parent.name.rpartition("-") for file in self.output.glob(f"*/{ROW_FILE}"))
        return sorted(int(seed) for name, _, seed in names if name == label and seed.isdecimal()) if row.shown else []

    def _write_results(self) -> Results:
        """Gather all rows into `results.json`."""
        with self._held():
            results = self.gather()
            write_results(self.output / "results.json", results)
        return results

    @contextmanager
    def _held(self) -> Iterator[None]:
        """Keeps the results to one process, inside the block."""
        self.output.mkdir(parents=True, exist_ok=True)
        lock = FolderLock(self.output, f"the ablation {self.output}")
        while True:
            try:
                lock.acquire()
                break
            except FolderInUse:
                time.sleep(_POLL)
        try:
            yield
        finally:
            lock.release()

    def shown(self) -> dict[str, list[np.ndarray]]:
        """The clips of the first captions, uint8 (F, H, W, 3), by row, of seed 0."""
        judged: list[JudgedRow | RenderedRow] = [self._rendered]
        judged += [self._judged(row, 0) for row in self.plan.rows if row.shown]
        return {
            each.name: list(load_file(each.folder / SHOWN_FILE)["videos"])
            for each in judged
            if (each.folder / SHOWN_FILE).exists()
        }

    def captions(self) -> list[str]:
        """The captions of the clips that are shown."""
        return [prompt.text for prompt in self._judging.world.prompts()[: self.plan.shown]]

    def _select(self, names: Sequence[str]) -> list[RowRecipe]:
        """The rows of these names, a curve's name standing for all of its own; all rows but those of curves if none."""
        curves = {curve.name: [row.name for row in curve.points.values()] for curve in self.plan.curves}
        known = [*(row.name for row in self.plan.rows), *curves]
        unknown = [name for name in names if name not in known]
        if unknown:
            raise UserError(f"there is no row {unknown[0]}: the plan has {', '.join(known)}")
        chosen = [each for name in names for each in curves.get(name, [name])] or [row.name for row in self.plan.rows]
        if not chosen:
            raise UserError(f"the plan has curves alone: name some of them (--rows {','.join(curves)})")
        return [row for row in self._rows if row.name in chosen]

    @property
    def _rows(self) -> list[RowRecipe]:
        """All rows, those of curves last."""
        return [*self.plan.rows, *(row for curve in self.plan.curves for row in curve.points.values())]

    def _row(self, name: str) -> RowRecipe:
        return next(row for row in self._rows if row.name == name)

    def _check(self, rows: Sequence[RowRecipe]) -> None:
        """Refuse what would fail later, before anything begins: rows over other clips, runs that cannot be, students
        that cannot be sampled."""
        for row in rows:
            self._check_knob(row)
        self.gather()
        self._check_trials(rows)
        for row in rows:
            if row.shown and not row.is_teacher:
                check_sampled(self._judged(row, 0).recipe)
            if row.run is None and not row.is_teacher:
                for seed in range(self.plan.seeds):
                    student = self._student(row, seed, self._value(row), self.output)
                    if is_trained(student.run) or (seed == 0 and not row.starts):
                        check_run(student.recipe, student.run)

    def _check_knob(self, row: RowRecipe) -> None:
        """Refuse a knob, of a row or of those that it needs, whose first value is not the recipe's own."""
        for name in (*row.starts.values(), *([] if row.run is None else [row.run])):
            self._check_knob(self._row(name))
        if row.knob is None:
            return
        assert row.recipe is not None
        key, own = row.knob.key, row.knob.values[0]
        if any(change.partition("=")[0].strip() == key for change in self.changes):
            raise UserError(f"--set {key} changes the knob of row {row.name}: change the plan's values of it instead")
        changes = (*row.changes, *self.changes)
        if _load(row.recipe, (*changes, _change(key, own))) != _load(row.recipe, changes):
            raise UserError(f"row {row.name} has another {key} than {own}: its knob's first value must be its own")

    def _check_trials(self, rows: Sequence[RowRecipe]) -> None:
        """Refuse trials that were made in another way or are stale: they would decide, or be trained beside others."""
        jobs = [job for job in self._trial_jobs(rows) if isinstance(job, (JudgedRow, RenderedRow)) and job.is_done()]
        for name, reason in stale_reasons([job.row() for job in jobs]).items():
            raise UserError(f"trials of row {name} are stale ({reason}): remove {self._tuning_folder} to tune again")

    # Jobs

    def _jobs(self, row: RowRecipe, seed: int) -> list[AblationJob]:
        """A row at a seed: its run and those before it, and its judgement."""
        if row.shown:
            return [*_with_needs(self._judged(row, seed))]
        return [*_with_needs(self._student(row, seed, self._value(row), self.output))]

    def _student(self, row: RowRecipe, seed: int, value: Any, root: Path) -> TrainedRun:
        """The run of a row that has its own; `value` is that of its knob."""
        starts = {key: self._row(name) for key, name in row.starts.items()}
        earlier = {key: self._student(other, seed, self._value(other), root) for key, other in starts.items()}
        assert row.recipe is not None
        changes = [*_UNWATCHED, *row.changes, *self.changes, f"seed={seed}"]
        changes += [_change(key, str(run.run)) for key, run in earlier.items()]
        changes += [] if row.knob is None else [_change(row.knob.key, value)]
        changes += [] if row.updates is None else [f"training.updates={row.updates}"]
        recipe = _load(row.recipe, tuple(changes))
        if row.updates is None:
            recipe = with_forwards(recipe, self.plan.forwards * row.share)
        label = _label(row, value)
        return TrainedRun(f"training {label}, seed {seed}", root / f"{label}-{seed}", recipe, tuple(earlier.values()))

    def _judged(self, row: RowRecipe, seed: int) -> JudgedRow:
        if row.is_teacher:
            assert row.recipe is not None
            recipe = _load(row.recipe, (*row.changes, *self.changes))
            return JudgedRow(row.name, seed, self.output / f"{row.name}-{seed}", self._judging, recipe, row.sampler)
        trained = row if row.run is None else self._row(row.run)
        student = self._student(trained, seed, self._value(trained), self.output)
        folder = self.output / f"{self._label(row)}-{seed}"
        return JudgedRow(row.name, seed, folder, self._judging, student.recipe, row.sampler, student)

    def _label(self, row: RowRecipe) -> str:
        """What the folders of a row are called, before the seed."""
        if row.run is not None:
            return f"{row.name}, {self._label(self._row(row.run))}"
        return _label(row, self._value(row))

    @cached_property
    def _rendered(self) -> RenderedRow:
        return RenderedRow(self.output / "rendered", self._judging)

    @cached_property
    def _judging(self) -> Judging:
        world = WorldSuite.of(self._world, self.plan.clips, self.plan.repeats)
        return Judging(world, (NativeSuite(),), self.plan.shown)

    @cached_property
    def _world(self) -> World:
        row = next(row for row in self._rows if row.recipe is not None)
        assert row.recipe is not None
        recipe = _load(row.recipe, (*row.changes, *self.changes))
        return world_of(read_facts(recipe.model).settings, recipe.data.world_level, recipe.model)

    # Tuning

    @property
    def _tuning_folder(self) -> Path:
        return self.output / "tuning"

    def _trial_jobs(self, rows: Sequence[RowRecipe]) -> list[AblationJob]:
        jobs: list[AblationJob] = [self._rendered_for_tuning]
        for row in rows:
            for value in () if row.knob is None else row.knob.values:
                for each in self._trial_rows(row, value):
                    jobs += _with_needs(each)
        return jobs

    def _trial_rows(self, row: RowRecipe, value: Any) -> list[JudgedRow]:
        """A value of a row's knob, at each seed of tuning."""
        students = [self._student(row, seed, value, self._tuning_folder) for seed in self.plan.tuning.seeds]
        return [
            JudgedRow(row.name, each.recipe.seed, each.folder, self._tuning, each.recipe, row.sampler, each)
            for each in students
        ]

    def _trials(self, row: RowRecipe) -> list[Trial] | None:
        """The trials of a row's knob; None until all are there."""
        if row.knob is None:
            return None
        rows = [self._trial_rows(row, value) for value in row.knob.values]
        truth = self._rendered_for_tuning
        if not truth.is_done() or not all(each.is_done() for trial in rows for each in trial):
            return None
        pairs = zip(row.knob.values, rows, strict=True)
        return [Trial.of(value, [each.row() for each in trial], truth.row()) for value, trial in pairs]

    def _value(self, row: RowRecipe) -> Any:
        """The value of a row's knob: as its trials say, or the recipe's own."""
        if row.knob is None:
            return None
        trials = self._trials(row)
        return row.knob.values[0] if trials is None else choose(trials).value

    @cached_property
    def _rendered_for_tuning(self) -> RenderedRow:
        return RenderedRow(self._tuning_folder / "rendered", self._tuning)

    @cached_property
    def _tuning(self) -> Judging:
        """With no caption that judges."""
        world = WorldSuite.of(self._world, self.plan.tuning.clips, 0)
        return Judging(replace(world, first=_TUNING_CAPTIONS, without=self.plan.clips), (), 0)

    # Results

    def _meta(self, found: Sequence[Row]) -> dict[str, Any]:
        """What holds for all rows: the budget, what the paper has, what was tuned, and what follows."""
        tuned = {row.name: trials for row in self.plan.rows if (trials := self._trials(row)) is not None}
        as_tuned = self._as_tuned(tuned)
        keys = {row.name: row.knob.key for row in self.plan.rows if row.knob is not None}
        return {
            "suite": WorldSuite.name,
            "level": self._world.level,
            "forwards": self.plan.forwards,
            "paper": {row.name: row.paper.model_dump() for row in self.plan.rows if row.paper is not None},
            "knobs": {
                name: {
                    "key": keys[name],
                    "value": choose(trials).value,
                    "trials": [asdict(trial) for trial in trials],
                }
                for name, trials in tuned.items()
            },
            "untuned": [name for name, text in as_tuned.items() if text == UNTUNED],
            "orderings": order_sentences(self.plan, found, as_tuned),
            "comparisons": comparison_sentences(self.plan, found, as_tuned),
            "curves": {
                curve.name: {
                    "recipe": curve.recipe,
                    "key": curve.key,
                    "rows": {row.name: value for value, row in curve.points.items()},
                }
                for curve in self.plan.curves
            },
        }

    def _as_tuned(self, tuned: Mapping[str, Sequence[Trial]]) -> dict[str, str]:
        """How each trained row was tuned, in words, by its name: another value than the recipe's own, or not at all."""
        found = {}
        for row in self.plan.rows:
            trained = row if row.run is None else self._row(row.run)
            if trained.knob is not None and trained.name in tuned:
                value = choose(tuned[trained.name]).value
                if value != trained.knob.values[0]:
                    found[row.name] = f"with {trained.knob.key}={value}"
            elif tuned and not row.is_teacher and row.shown:
                found[row.name] = UNTUNED
        return found


def _label(row: RowRecipe, value: Any) -> str:
    """What the folders of a row's runs are called, before the seed; `value` is that of its knob."""
    return row.name if row.knob is None or value == row.knob.values[0] else f"{row.name}@{value}"


def _change(key: str, value: Any) -> str:
    """KEY=VALUE, read back as the same value: in quotes where it needs them."""
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=math.inf)
    return f"{key}={text.strip().removesuffix('...').strip()}"


@cache
def _load(name: str, changes: tuple[str, ...]) -> Recipe:
    """A recipe, read once: it must not change while an ablation is at work."""
    return load_recipe(name, changes)


@contextmanager
def _collecting(failed: list[UserError]) -> Iterator[None]:
    """Puts what fails inside the block into a list."""
    try:
        yield
    except UserError as error:
        failed.append(error)


def _with_needs(job: AblationJob) -> list[AblationJob]:
    """A job after all that it needs."""
    return [each for need in job.needs for each in _with_needs(need)] + [job]
