"""Judging clip by clip: a model's samples or a folder of videos, and a reference, in all processes of a launch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avd import ui
from avd.cli.placement import place
from avd.types import UserError

if TYPE_CHECKING:
    from avd.engine.ranks import Ranks
    from avd.evaluation.comparison import JudgedSet, SetComparison
    from avd.evaluation.judging import Origin
    from avd.evaluation.records import RecordFolder
    from avd.evaluation.rows import Overlap, Row
    from avd.evaluation.sampling import Samples
    from avd.evaluation.suite import Clip, ClipSuite, Prompt
    from avd.sampling.placement import PlacedModel, Placement


@dataclass(frozen=True)
class Side:
    """What is judged: the clips of a folder, or with None a model's answers to prompts, sampled into `folder`."""

    what: str
    name: str
    clips: Sequence[Clip] | None
    prompts: Sequence[Prompt]
    """What the clips are of, or will be."""
    folder: Path
    sampling: dict[str, Any]
    """What `make_sampler` takes."""


@dataclass(frozen=True)
class Judged:
    """A row, and the clips that it is of."""

    row: Row
    clips: Sequence[Clip]
    values: JudgedSet
    samples: Samples | None


def find_sides(
    suite: ClipSuite,
    named: Sequence[str],
    names: Sequence[str],
    reference: str | None,
    folder: Path,
    sampling: dict[str, Any],
) -> list[Side]:
    """What is judged and last, if it is named, the reference; models are sampled into `folder` and others beside it.

    A model answers the prompts of the first that is named, if those are videos, else the suite's, or, of a suite
    without, those of videos that it is compared with. Raises UserError where there are none, and for a folder of
    neither.
    """
    from avd.evaluation.folder import align_prompts

    called = row_names(named, names, reference)
    everything = [*named, *([] if reference is None else [reference])]
    clips = [_find_videos(each) for each in everything]
    if reference is not None:
        aligned = iter(align_prompts([found for found in clips if found is not None]))
        clips = [None if found is None else next(aligned) for found in clips]
    wanted = [clip.prompt for clip in clips[0]] if clips[0] is not None else suite.prompts()
    if not wanted:
        wanted = [clip.prompt for clip in next((each for each in reversed(clips) if each is not None), ())]
    if not wanted:
        raise UserError(f"suite {suite.name} has no prompts of its own: name a file with --prompts")
    sides = []
    for i, found in enumerate(clips):
        prompts = wanted if found is None else [clip.prompt for clip in found]
        is_reference = i == len(named)
        part = "-reference" if is_reference else f"-{i}" if i else ""
        own = {} if is_reference else sampling
        sides.append(Side(everything[i], called[i], found, prompts, folder.with_name(folder.name + part), own))
    return sides


def check_pairs(sides: Sequence[Side], unpaired: bool) -> None:
    """Say of which sides no clip has a partner in the last, the reference; raises UserError as `are_paired` does."""
    from avd.evaluation.comparison import are_paired

    *judged, theirs = sides
    for own in judged:
        if not unpaired and not are_paired(own.prompts, theirs.prompts, unpaired, (own.name, theirs.name)):
            first, other = own.prompts[0], theirs.prompts[0]
            ui.say(
                f"no clip of {own.name} has a partner in {theirs.name}, so they are compared as they are: prompts are "
                f"like {first.text!r}, repeat {first.repeat}, and {other.text!r}, repeat {other.repeat}"
            )


def row_names(named: Sequence[str], names: Sequence[str], reference: str | None) -> list[str]:
    """What the rows of paths or models are called, the reference's last: `names` in order, and those without by the
    last parts of their paths, as many as tell them apart.

    Raises UserError for one that is named twice, for two rows of one name, and for more names than rows.
    """
    paths = [Path(each).resolve() for each in (*named, *([] if reference is None else [reference]))]
    twice = next((each for i, each in enumerate(named) if paths[i] in paths[:i]), None)
    if twice is not None:
        raise UserError(f"{twice} is named twice: name it once")
    if len(names) > len(named):
        raise UserError(f"--name is given {len(names)} times, and {len(named)} are judged: give one for each, in order")
    found = [*names, *(_short_name(path, paths) for path in paths[len(names) : len(named)])]
    alike = next((name for name in found if found.count(name) > 1), None)
    if alike is not None:
        raise UserError(f"two rows would be called {alike!r}: tell them apart with --name, once for each, in order")
    for path in paths[len(named) :]:
        short = _short_name(path, paths)
        found.append(f"{short} (reference)" if short in found else short)
    return found


def _short_name(path: Path, paths: Sequence[Path]) -> str:
    """The last parts of a path, as many as no other path ends in."""
    others = [other.parts for other in paths if other != path]
    for count in range(1, len(path.parts)):
        last = path.parts[-count:]
        if all(other[-count:] != last for other in others):
            return "/".join(last)
    return str(path)


def _find_videos(what: str) -> list[Clip] | None:
    """The clips of a folder of videos; None for a model."""
    from avd.evaluation.folder import holds_videos, list_clips
    from avd.models.family import find_facts

    folder = Path(what)
    if not folder.exists():
        find_facts(what)  # raises for what is no model
    if not folder.is_dir() or (folder / "model_index.json").exists():
        return None
    if not holds_videos(folder):
        raise UserError(f"{folder} is neither a folder of videos (it holds none) nor a model (no model_index.json)")
    return list_clips(folder)


@contextmanager
def open_records(folder: Path, suite: ClipSuite, ranks: Ranks) -> Iterator[RecordFolder]:
    """The records in `folder`, kept to this launch inside the block; all of its processes call it.

    Raises UserError, in all of them, where another command is at work in it.
    """
    from avd.evaluation.provenance import code_version
    from avd.evaluation.records import RecordFolder

    records = RecordFolder(folder, suite, ranks.rank, ranks.decide(code_version))
    with ExitStack() as stack:
        with ranks.together():
            if ranks.is_main:
                stack.enter_context(records.held())
        yield records


@dataclass(frozen=True)
class ClipJudge:
    """Judges with `suite`, sampling models with `seed`. All processes call it alike, and share the work."""

    suite: ClipSuite
    ranks: Ranks
    records: RecordFolder
    placement: Placement
    seed: int

    def judge(self, side: Side) -> Judged:
        """The row of one side.

        Raises UserError for a clip that cannot be read or that the suite refuses; of a model, before it is sampled.
        """
        from avd.evaluation.judging import Origin
        from avd.evaluation.provenance import numbers_of, recipe_of, teacher_of

        if side.clips is not None:
            return self._judge(side, side.clips, Origin(), None)
        recipe = recipe_of(side.what)  # raises where it cannot be read, before hours of sampling
        overlap = self._report_overlap(side) if self.ranks.is_main else None
        samples = self._sample(side)
        origin = Origin.of_samples(samples, recipe, teacher_of(side.what, recipe), numbers_of(side.what))
        judged = self._judge(side, list(samples.clips()), origin, samples)
        return replace(judged, row=judged.row.model_copy(update={"overlap": overlap}))

    def _judge(self, side: Side, clips: Sequence[Clip], origin: Origin, samples: Samples | None) -> Judged:
        from avd.evaluation.comparison import JudgedSet
        from avd.evaluation.judging import make_row, measure_share

        rank, size = self.ranks.rank, self.ranks.size
        with ui.bars() as bar:
            progress = bar(f"judging {side.name}")
            measure_share(self.suite, clips, self.records, rank=rank, size=size, progress=progress)
            measured = self.records.wait(clips, bar("waiting for the records of others"))
        self.ranks.barrier()  # nobody may look for clips or records that the first process has removed
        row = make_row(self.suite, measured, name=side.name, origin=origin)
        return Judged(row, clips, JudgedSet.of(self.suite, side.name, measured), samples)

    def _report_overlap(self, side: Side) -> Overlap | None:
        """Say which prompts the model was trained on, before it is sampled; None if it is of no run."""
        from avd.evaluation.trained_prompts import describe_overlap, find_overlap

        overlap = find_overlap(side.what, [prompt.text for prompt in side.prompts])
        if overlap is not None:
            for line in describe_overlap(overlap, self.suite.name):
                ui.say(line)
        return overlap

    def _sample(self, side: Side) -> Samples:
        """The clips of all processes, once all are there. The model is let go with this call."""
        from avd.evaluation.judging import check_model
        from avd.evaluation.sampling import sample_clips
        from avd.sampling.choose import make_sampler

        sampler = make_sampler(self._open_model(side), **side.sampling)
        check_model(self.suite, side.prompts, sampler.model.settings, side.what)
        with ui.bars() as bar:
            samples = sample_clips(
                sampler,
                side.prompts,
                side.folder,
                seed=self.seed,
                rank=self.ranks.rank,
                size=self.ranks.size,
                progress=bar(f"sampling {side.name}"),
            )
            # by their files: others may be hours behind, longer than ranks wait for each other
            samples.wait(bar("waiting for the batches of others"))
        return samples

    def _open_model(self, side: Side) -> PlacedModel:
        """The model on this process's device, in bfloat16 on a GPU."""
        import torch

        from avd.evaluation.sampling import agree_on_tiling
        from avd.models.family import load_model

        dtype = torch.bfloat16 if self.ranks.device.type == "cuda" else torch.float32
        opened = load_model(side.what, dtype=dtype, device=self.ranks.device)
        return place(opened, agree_on_tiling(self.placement, opened, side.folder, self.ranks))


def write_judged(
    suite: ClipSuite,
    judged: Sequence[Judged],
    reference: Judged | None,
    json: Path,
    *,
    csv: Path | None,
    page: Path | None,
    unpaired: bool,
) -> None:
    """Write the rows of what was judged and of the reference, then the values of all clips to `csv` and the page to
    `page`; show the rows.

    `unpaired` is that of `compare_sets`. Raises UserError as it does, and where a clip of the page cannot be read.
    """
    from avd.evaluation.comparison import compare_sets
    from avd.evaluation.rows import Results, write_results
    from avd.report import comparison_table, terminal_table, write_clip_values

    everything = [*judged, *([] if reference is None else [reference])]
    compared: list[SetComparison] = []
    meta = {}
    if reference is not None:
        compared = [compare_sets(suite, each.values, reference.values, unpaired=unpaired) for each in judged]
        meta["comparisons"] = {each.subject.name: each.as_json() for each in compared}
    rows = [each.row for each in everything]
    write_results(json, Results(rows=rows, meta=meta))  # first: what goes wrong with the others costs no result
    if csv is not None:
        write_clip_values(csv, suite.measures, [each.values for each in everything])
    if page is not None:
        _write_page(suite, judged, reference, compared, page)
    ui.out.print(terminal_table(rows))
    for comparison in compared:
        ui.out.print(comparison_table(comparison))


def _write_page(
    suite: ClipSuite,
    judged: Sequence[Judged],
    reference: Judged | None,
    compared: Sequence[SetComparison],
    path: Path,
) -> None:
    from avd.report import ComparisonPage, ShownSet

    def show(each: Judged) -> ShownSet:
        return ShownSet(each.values, {clip.name: clip.read for clip in each.clips})

    title, rows = ", ".join(each.values.name for each in judged), [each.row for each in judged]
    if reference is not None:
        title, rows = f"{title} against {reference.values.name}", [reference.row, *rows]
    theirs = None if reference is None else show(reference)
    ComparisonPage(suite.measures, [show(each) for each in judged], theirs, compared).write(path, rows, title=title)
