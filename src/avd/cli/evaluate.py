"""`avd evaluate` and `avd table`: rows of measures, and tables made of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

from avd.cli.judging.clips import ClipJudge, check_pairs, find_sides, open_records, row_names, write_judged
from avd.cli.judging.official import refuse_options, write_official
from avd.cli.placement import (
    Attention,
    Compile,
    Decoder,
    Float8,
    Guidance,
    HalfRate,
    HalfResolution,
    Int8,
    NegativePrompt,
    Offload,
    Steps,
    Tiling,
    placement_of,
)


def evaluate(
    context: typer.Context,
    what: Annotated[
        list[str], typer.Argument(metavar="DIR_OR_MODEL...", help="Folders of videos, or models; one or several.")
    ],
    json: Annotated[Path, typer.Option("--json", help="File for the row.")],
    suite: Annotated[str, typer.Option("--suite", help="What to measure with.")] = "world",
    reference: Annotated[
        str | None,
        typer.Option(
            "--reference",
            metavar="DIR_OR_MODEL",
            help="What to compare with: the teacher, or real videos.",
        ),
    ] = None,
    unpaired: Annotated[
        bool, typer.Option("--unpaired", help="Compare the sets as they are, not clip by clip of one prompt.")
    ] = False,
    prompts: Annotated[
        Path | None, typer.Option("--prompts", help="Native: a file with one prompt per line for models to answer.")
    ] = None,
    clips: Annotated[int | None, typer.Option("--clips", help="World: held-out captions [128].", min=1)] = None,
    repeats: Annotated[
        int | None,
        typer.Option("--repeats", help="Seeds of each prompt (native [2]), of open captions (world [8]).", min=0),
    ] = None,
    level: Annotated[int | None, typer.Option("--level", help="World: its level [0].", min=0)] = None,
    changes: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any option of the suite; repeatable.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the sampling noise.", min=0, max=2**63 - 1)] = 0,
    names: Annotated[
        list[str] | None,
        typer.Option("--name", help="Name of a row, in the order of DIR_OR_MODEL; default: the end of its path."),
    ] = None,
    vbench_python: Annotated[
        Path | None, typer.Option("--vbench-python", help="VBench: the Python that has the official package.")
    ] = None,
    suite_info: Annotated[
        Path | None,
        typer.Option("--suite-info", help="VBench: its list of prompts, or a checkout; default: the package's."),
    ] = None,
    dimensions: Annotated[
        list[str] | None,
        typer.Option("--dimensions", metavar="NAME,...", help="VBench: these dimensions alone; there is no total."),
    ] = None,
    csv: Annotated[Path | None, typer.Option("--csv", help="File for the values of each clip.")] = None,
    page: Annotated[
        Path | None, typer.Option("--page", help="HTML file with plots, verdicts and the worst clips.")
    ] = None,
    half_rate: HalfRate = None,
    half_resolution: HalfResolution = None,
    steps: Steps = None,
    guidance: Guidance = None,
    negative_prompt: NegativePrompt = None,
    samples: Annotated[
        Path | None,
        typer.Option("--samples", help="Keep the sampled clips here; default: beside the row until it is written."),
    ] = None,
    records: Annotated[
        Path | None,
        typer.Option("--records", help="Keep what is measured of each clip here, and use what is there already."),
    ] = None,
    offload: Offload = None,
    tiling: Tiling = None,
    attention: Attention = None,
    fp8: Float8 = False,
    int8: Int8 = False,
    compiled: Compile = False,
    decoder: Decoder = None,
) -> None:
    """Measure models, or videos made elsewhere, and write their rows as JSON.

    With a reference, it says of each measure how far each differs from it, with an interval, and whether that is within
    the limit. How models are sampled (--steps and the like) is for DIR_OR_MODEL; a reference has its own settings.

    Stopped and started again, it samples and judges only what is missing. Started by torchrun, its processes share
    both.

    VBench and VBench-2.0 judge a folder that `avd generate --suite` made, by their official code and on all GPUs that
    are seen, without torchrun; a reference's row is written too.

    Examples: avd evaluate runs/avd/student --suite world --json runs/avd/row.json

    avd evaluate dmd-videos avd-videos --suite native --reference teacher-videos --json row.json --page page.html
    """
    from avd.config import ComputeRecipe
    from avd.engine.ranks import process_group
    from avd.evaluation.benchmarks.scoring import OfficialSuite
    from avd.evaluation.suite import ClipSuite
    from avd.evaluation.suites import make_suite
    from avd.types import UserError

    _check_outputs((json, csv, page), (samples, records))
    if unpaired and reference is None:
        raise UserError("--unpaired is for a comparison: name what to compare with by --reference")
    placement = placement_of(offload, tiling, attention, fp8, int8, compiled, decoder)
    options = {"prompts_file": prompts and str(prompts), "clips": clips, "repeats": repeats, "level": level}
    judging = make_suite(suite, _options(options, changes or []))
    strides = {"half_rate": half_rate, "half_resolution": half_resolution}
    sampling = {**strides, "steps": steps, "guidance": guidance, "negative_prompt": negative_prompt}
    refuse_options(context, judging)
    if isinstance(judging, OfficialSuite):
        paths = map(Path, what if reference is None else [*what, reference])
        folders = dict(zip(row_names(what, names or (), reference), paths, strict=True))
        write_official(judging, folders, json, python=vbench_python, info=suite_info, dimensions=dimensions)
        return
    assert isinstance(judging, ClipSuite)
    samples_folder = samples or json.with_name(f"{json.stem}-samples")
    sides = find_sides(judging, what, names or (), reference, samples_folder, sampling)
    if reference is not None:
        check_pairs(sides, unpaired)  # raises before hours of sampling
    records_folder = records or json.with_name(f"{json.stem}-records")
    with process_group(ComputeRecipe()) as ranks:
        ranks.barrier()  # no process may find the row that another has written
        with open_records(records_folder, judging, ranks) as found:
            judge = ClipJudge(judging, ranks, found, placement, seed)
            judged = [judge.judge(side) for side in sides]
            if ranks.is_main:
                compared_with = None if reference is None else judged[-1]
                write_judged(judging, judged[: len(what)], compared_with, json, csv=csv, page=page, unpaired=unpaired)
                if records is None:
                    found.remove()
                if samples is None:
                    for each in judged:
                        if each.samples is not None:
                            each.samples.remove()


def _check_outputs(files: Sequence[Path | None], folders: Sequence[Path | None]) -> None:
    """Raise UserError, before anything is measured, for files that are there, cannot be made, or have one path."""
    from avd.files import check_can_make
    from avd.types import UserError

    paths = [path.resolve() for path in (*files, *folders) if path is not None]
    twice = next((path for i, path in enumerate(paths) if path in paths[:i]), None)
    if twice is not None:
        raise UserError(f"output {twice} is named twice: give each output a path of its own")
    for path in files:
        if path is not None and path.exists():
            raise UserError(f"output {path} exists already: name another file")
    for path in [*files, *(folder and folder / "files" for folder in folders)]:
        if path is not None:
            check_can_make(path)


def _options(given: Mapping[str, object], changes: list[str]) -> dict[str, object]:
    """Options of the suite: those with an option of the command line of their own, then those of `--set`."""
    from avd.types import UserError

    options: dict[str, object] = {key: value for key, value in given.items() if value is not None}
    for change in changes:
        key, equals, value = change.partition("=")
        if not equals:
            raise UserError(f"--set {change}: write KEY=VALUE")
        options[key] = value
    return options


def table(
    files: Annotated[list[Path], typer.Argument(help="JSON files with rows, as `avd evaluate` and `avd demo` write.")],
    mixed_protocols: Annotated[
        bool,
        typer.Option("--mixed-protocols", help="Take rows of a benchmark that were judged by different protocols."),
    ] = False,
) -> None:
    """Print rows as one Markdown table; rows of one name and several seeds become mean and spread.

    Rows of VBench that differ in prompts, samples, size, length or official code are refused; with --mixed-protocols a
    column says in what they differ. A row is marked stale if the numbers of the code, or the weights of its teacher,
    have changed since; a line below the table says which.

    Example: avd table runs/*/row.json > docs/results-table.md
    """
    from avd.evaluation.rows import read_results
    from avd.evaluation.staleness import stale_reasons
    from avd.report import markdown_table

    rows = [row for file in files for row in read_results(file).rows]
    typer.echo(markdown_table(rows, mixed_protocols=mixed_protocols, stale=stale_reasons(rows)))
