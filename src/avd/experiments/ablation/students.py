"""What an ablation trains, and the rows that it judges: one job each."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError
from safetensors.numpy import save

from avd.config import Recipe
from avd.distillation.numbers import recorded_numbers
from avd.engine.run_folder import flatten
from avd.evaluation.judging import RENDERED, Origin, check_model, judge, make_row, measure_share
from avd.evaluation.provenance import code_version, teacher_of
from avd.evaluation.records import RecordFolder
from avd.evaluation.rows import Results, Row, Training, read_results, write_results
from avd.evaluation.sampling import Samples, sample_clips
from avd.evaluation.suite import ClipSuite
from avd.evaluation.suites.world import WorldSuite
from avd.experiments import Bars, Say
from avd.experiments.ablation.jobs import AblationJob
from avd.experiments.training import is_trained, train, training_of
from avd.files import remove_folder, write_atomically
from avd.models.family import open_model
from avd.sampling.choose import make_sampler
from avd.sampling.samplers import FewSteps, ManySteps, Sampler
from avd.types import CountProgress, UserError

ROW_FILE = "row.json"
SHOWN_FILE = "shown.safetensors"
"""`videos`, uint8 (N, F, H, W, 3): the clips of the first captions."""
_SAMPLES, _RECORDS = "samples", "records-"


@dataclass(frozen=True)
class TrainedRun:
    """The run of one row at one seed. A job."""

    title: str
    folder: Path
    recipe: Recipe
    starts: tuple[TrainedRun, ...] = ()
    """The runs that it begins with."""

    @property
    def run(self) -> Path:
        return self.folder / "run"

    @property
    def needs(self) -> Sequence[AblationJob]:
        return self.starts

    @property
    def made(self) -> dict[str, Any]:
        """What it is trained by and began with, wherever the folder lies."""
        text = self.recipe.model_dump_json(by_alias=True)
        for each in self.starts:
            text = text.replace(json.dumps(str(each.run), ensure_ascii=False), json.dumps(each.folder.name))
        return {"recipe": json.loads(text), "starts": {each.folder.name: each.made for each in self.starts}}

    def is_done(self) -> bool:
        return is_trained(self.run)

    def do(self, bars: Bars, say: Say) -> None:
        train(self.recipe, self.run, self.title, bars, say)

    def training(self) -> Training:
        """What it has cost, once it is done."""
        earlier = [training_of(each.recipe, each.run) for each in self._earlier().values()]
        return training_of(self.recipe, self.run, earlier)

    def numbers(self) -> int | None:
        """The least `NUMBERS` that it or a run before it began with, once it is done; None where one has no record."""
        runs = [self.run, *(each.run for each in self._earlier().values())]
        found = [recorded_numbers(run) for run in runs]
        return None if None in found else min(each for each in found if each is not None)

    def _earlier(self) -> dict[Path, TrainedRun]:
        """Every run that it begins with, once, by its folder; those that these began with too."""
        found: dict[Path, TrainedRun] = {}
        for each in self.starts:
            found |= each._earlier() | {each.folder: each}
        return found


@dataclass(frozen=True)
class Judging:
    """With what rows are judged: the world's suite asks for the clips, and `others` judge them too."""

    world: WorldSuite
    others: tuple[ClipSuite, ...]
    shown: int
    """Clips that are kept to be shown."""

    @property
    def suites(self) -> tuple[ClipSuite, ...]:
        return (self.world, *self.others)

    @property
    def made(self) -> dict[str, Any]:
        """What decides on which clips a row is, and what measures them."""
        return asdict(self.world) | {"suites": [suite.name for suite in self.suites]}


@dataclass(frozen=True)
class JudgedRow:
    """A row of a table at one seed. A job."""

    name: str
    seed: int
    folder: Path
    judging: Judging
    recipe: Recipe
    """What trains the student, or names the teacher."""
    sampling: str
    """As `config.ablation.RowSampler` has it."""
    student: TrainedRun | None = None
    """None for a teacher's row."""

    @property
    def title(self) -> str:
        return f"{self.name}, seed {self.seed}"

    @property
    def needs(self) -> Sequence[AblationJob]:
        return () if self.student is None else (self.student,)

    @property
    def file(self) -> Path:
        return self.folder / ROW_FILE

    @property
    def made(self) -> dict[str, Any]:
        """All that must be the same for the row to be this one."""
        recipe = {"recipe": self.recipe.model_dump(mode="json", by_alias=True), "starts": {}}
        trained = recipe if self.student is None else self.student.made
        return trained | {"sampler": self.sampling, "judging": self.judging.made}

    def is_done(self) -> bool:
        return self.file.exists() and not self._leftovers()

    def row(self) -> Row:
        """What was measured. Raises UserError if it was made or judged in another way."""
        return read_row(self.file, self.made)

    def do(self, bars: Bars, say: Say) -> None:
        if not self.file.exists():  # killed after it was written, only what it needed no more is left
            self._sample_and_judge(bars)
        for folder in self._leftovers():
            remove_folder(folder)

    def _sample_and_judge(self, bars: Bars) -> None:
        sampler, world = self._sampler(), self.judging.world
        check_model(world, world.prompts(), sampler.model.settings, self.name)
        with bars() as bar:
            samples = sample_clips(
                sampler,
                world.prompts(),
                self.folder / _SAMPLES,
                seed=self.seed,
                progress=bar(f"sampling {self.title}"),
            )
        row = self._judge(samples, bars)
        shown = [clip.read().frames for clip in islice(samples.clips(), self.judging.shown)]
        write_row(self.folder, row, shown, self.made)

    def _sampler(self) -> Sampler:
        if self.student is not None:
            return make_sampler(open_model(str(self.student.run / "student")), half_rate=self.sampling == "half")
        if self.recipe.teacher is not None:
            model = open_model(self.recipe.teacher)
        else:
            model = open_model(self.recipe.model, transformer=self.recipe.transformer)
        if self.sampling == "cut":
            return FewSteps(model, self.recipe.rollout.timesteps)
        return ManySteps(model, model.settings.steps, model.settings.guidance)

    def _judge(self, samples: Samples, bars: Bars) -> Row:
        """The row of all suites, clip by clip: what has been measured before is not measured again."""
        recipe = self.recipe.model_dump(mode="json")
        teacher = teacher_of(self.recipe.model, recipe)
        if self.student is None:
            origin = Origin.of_samples(samples, teacher=teacher)
        else:
            origin = Origin.of_samples(samples, recipe, teacher, self.student.numbers())
        clips, rows = list(samples.clips()), []
        for suite in self.judging.suites:
            records = RecordFolder(self._records_folder(suite), suite, code=code_version())
            with bars() as bar:
                measure_share(suite, clips, records, progress=bar(f"judging {self.title}: {suite.name}"))
            measured = records.wait(clips, lambda done, total: None)
            rows.append(make_row(suite, measured, name=self.name, origin=origin))
        row = merge_suites(rows)
        return row if self.student is None else row.model_copy(update={"training": self.student.training()})

    def _records_folder(self, suite: ClipSuite) -> Path:
        """Where what a suite has measured of each clip is kept until the row is written."""
        return self.folder / f"{_RECORDS}{suite.name}"

    def _leftovers(self) -> list[Path]:
        """What is needed only until the row is written."""
        return [path for path in self.folder.glob("*") if path.name.startswith((_SAMPLES, _RECORDS))]


@dataclass(frozen=True)
class RenderedRow:
    """The truth: the clips that the world itself draws for the captions. A job."""

    folder: Path
    judging: Judging
    name: str = "rendered clips"
    needs: tuple[AblationJob, ...] = ()

    @property
    def title(self) -> str:
        return f"{self.name} in {self.folder}"

    @property
    def file(self) -> Path:
        return self.folder / ROW_FILE

    def is_done(self) -> bool:
        return self.file.exists()

    def row(self) -> Row:
        """As `JudgedRow.row`."""
        return read_row(self.file, {"judging": self.judging.made})

    def do(self, bars: Bars, say: Say) -> None:
        world, rows = self.judging.world, []
        for suite in self.judging.suites:
            with bars() as bar:
                progress = bar(f"judging {self.name}: {suite.name}")
                judged = partial(_count, progress, world.clips)
                rows.append(judge(suite, world.rendered(), name=self.name, origin=RENDERED, judged=judged))
        shown = [clip.read().frames for clip in islice(world.rendered(), self.judging.shown)]
        write_row(self.folder, merge_suites(rows), shown, {"judging": self.judging.made})


def _count(progress: CountProgress, total: int, done: int) -> None:
    progress(done, total)


def read_row(file: Path, made: dict[str, Any]) -> Row:
    """The row in a file. Raises UserError if it was made in another way than `made` says, or does not say how."""
    results = read_results(file)
    before, now = flatten(_with_defaults(results.meta.get("made", {}), file)), flatten(made)
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key):
            raise UserError(
                f"{file} was made with {key} = {before.get(key)}, now it is {now.get(key)}: rows of one folder are "
                "compared, so keep to its options, remove that row's folder, or name another output folder"
            )
    return results.rows[0]


def _with_defaults(made: dict[str, Any], file: Path) -> dict[str, Any]:
    """Recipes' keys that are newer than the file stand for their defaults."""
    if "recipe" not in made:
        return made
    try:
        recipe = Recipe.model_validate(made["recipe"]).model_dump(mode="json", by_alias=True)
    except ValidationError as error:
        key = ".".join(map(str, error.errors()[0]["loc"])) or "recipe"
        raise UserError(f"{file} is of a recipe that this version does not accept ({key}): remove its folder") from None
    starts = {name: _with_defaults(each, file) for name, each in made["starts"].items()}
    return made | {"recipe": recipe, "starts": starts}


def write_row(folder: Path, row: Row, shown: Sequence[np.ndarray], made: dict[str, Any]) -> None:
    """Write a row and how it was made, after the clips that are shown of it, uint8 (F, H, W, 3)."""
    if shown:
        write_atomically(folder / SHOWN_FILE, save({"videos": np.stack(shown)}))
    write_results(folder / ROW_FILE, Results(rows=[row], meta={"made": made}))


def merge_suites(rows: Sequence[Row]) -> Row:
    """One row of what several suites measured of the same clips; the number of videos is the first one's."""
    scores = {suite: values for row in rows for suite, values in row.scores.items()}
    errors = {suite: values for row in rows for suite, values in row.errors.items()}
    return rows[0].model_copy(update={"scores": scores, "errors": errors})
