"""`avd evaluate` and `avd table`: rows of measures, and tables made of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from avd import ui
from avd.cli.placement import (
    Attention,
    Compile,
    Decoder,
    Float8,
    Guidance,
    HalfRate,
    Int8,
    NegativePrompt,
    Offload,
    Steps,
    Tiling,
    place,
    placement_of,
)

if TYPE_CHECKING:
    from avd.engine.ranks import Ranks
    from avd.evaluation.records import RecordFolder
    from avd.evaluation.rows import Overlap
    from avd.evaluation.sampling import Samples
    from avd.evaluation.suite import Clip, ClipRecord, ClipSuite
    from avd.sampling.placement import PlacedModel, Placement
    from avd.sampling.samplers import Sampler


def evaluate(
    what: Annotated[
        str, typer.Argument(metavar="DIR_OR_MODEL", help="A folder of MP4s with captions.jsonl, or a model.")
    ],
    json: Annotated[Path, typer.Option("--json", help="File for the row.")],
    suite: Annotated[str, typer.Option("--suite", help="What to measure with.")] = "world",
    clips: Annotated[int | None, typer.Option("--clips", help="World: held-out captions [128].", min=1)] = None,
    repeats: Annotated[int | None, typer.Option("--repeats", help="World: seeds of open captions [8].", min=0)] = None,
    level: Annotated[int | None, typer.Option("--level", help="World: its level [0].", min=0)] = None,
    changes: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any option of the suite; repeatable.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the sampling noise.", min=0, max=2**63 - 1)] = 0,
    name: Annotated[str | None, typer.Option("--name", help="Name of the row; default: DIR_OR_MODEL's.")] = None,
    half_rate: HalfRate = None,
    steps: Steps = None,
    guidance: Guidance = None,
    negative_prompt: NegativePrompt = None,
    samples: Annotated[
        Path | None,
        typer.Option("--samples", help="Keep the sampled clips here; default: beside the row until it is written."),
    ] = None,
    offload: Offload = None,
    tiling: Tiling = None,
    attention: Attention = None,
    fp8: Float8 = False,
    int8: Int8 = False,
    compiled: Compile = False,
    decoder: Decoder = None,
) -> None:
    """Measure a model, or videos made elsewhere, and write the row as JSON.

    Stopped and started again, it samples and judges only what is missing. Started by torchrun, its processes share
    both.

    Example: avd evaluate runs/avd/student --suite world --json runs/avd/row.json
    """
    from avd.config import ComputeRecipe
    from avd.engine.ranks import process_group
    from avd.evaluation.folder import VideoFolder
    from avd.evaluation.judging import Origin, make_row
    from avd.evaluation.provenance import recipe_of
    from avd.evaluation.records import RecordFolder
    from avd.evaluation.rows import Results, write_results
    from avd.evaluation.suite import ClipSuite
    from avd.evaluation.suites import make_suite
    from avd.files import check_can_make
    from avd.report import terminal_table
    from avd.sampling.choose import make_sampler
    from avd.types import UserError

    if json.exists():
        raise UserError(f"output {json} exists already: name another file")
    check_can_make(json)
    if samples is not None:
        check_can_make(samples / "clips")
    placement = placement_of(offload, tiling, attention, fp8, int8, compiled, decoder)
    judging = make_suite(suite, _options({"clips": clips, "repeats": repeats, "level": level}, changes or []))
    assert isinstance(judging, ClipSuite)
    name, is_videos = name or Path(what).resolve().name, _is_videos(Path(what))
    with process_group(ComputeRecipe()) as ranks:
        ranks.barrier()  # no process may find the row that another has written
        overlap = None
        if is_videos:
            sampled, found, origin = None, list(VideoFolder(Path(what)).clips()), Origin()
        else:
            clips_folder = samples or json.with_name(f"{json.stem}-samples")
            recipe = recipe_of(what)  # raises where it cannot be read, before hours of sampling
            overlap = _report_overlap(judging, what) if ranks.is_main else None
            placed = _open_model(what, ranks, placement, clips_folder)
            sampler = make_sampler(
                placed, half_rate=half_rate, steps=steps, guidance=guidance, negative_prompt=negative_prompt
            )
            sampled = _sample(judging, what, sampler, clips_folder, seed, ranks)
            found, origin = list(sampled.clips()), Origin.of_samples(sampled, recipe)
        records = RecordFolder(json.with_name(f"{json.stem}-records"), judging, ranks.rank)
        measured = _measure(judging, found, records, ranks)
        if ranks.is_main:
            row = make_row(judging, measured, name=name, origin=origin).model_copy(update={"overlap": overlap})
            write_results(json, Results(rows=[row]))
            records.remove()
            if sampled is not None and samples is None:
                sampled.remove()
            ui.out.print(terminal_table([row]))


def _report_overlap(suite: ClipSuite, model: str) -> Overlap | None:
    """Say which prompts of the suite the model was trained on, before it is sampled; None if it is of no run."""
    from avd.evaluation.trained_prompts import describe_overlap, find_overlap

    overlap = find_overlap(model, [prompt.text for prompt in suite.prompts()])
    if overlap is not None:
        for line in describe_overlap(overlap, suite.name):
            ui.say(line)
    return overlap


def _open_model(model: str, ranks: Ranks, placement: Placement, folder: Path) -> PlacedModel:
    """The model on this process's device, in bfloat16 on a GPU, to make the clips in `folder`."""
    import torch

    from avd.evaluation.sampling import agree_on_tiling
    from avd.models.family import load_model

    dtype = torch.bfloat16 if ranks.device.type == "cuda" else torch.float32
    opened = load_model(model, dtype=dtype, device=ranks.device)
    return place(opened, agree_on_tiling(placement, opened, folder, ranks))


def _sample(suite: ClipSuite, model: str, sampler: Sampler, folder: Path, seed: int, ranks: Ranks) -> Samples:
    """The clips of all processes, once all are there."""
    from avd.evaluation.judging import check_model
    from avd.evaluation.sampling import sample_clips

    check_model(suite, sampler.model.settings, model)
    with ui.bars() as bar:
        prompts, rank, size = suite.prompts(), ranks.rank, ranks.size
        samples = sample_clips(sampler, prompts, folder, seed=seed, rank=rank, size=size, progress=bar("sampling"))
        # by their files: others may be hours behind, longer than ranks wait for each other
        samples.wait(bar("waiting for the batches of others"))
    return samples


def _measure(suite: ClipSuite, clips: list[Clip], records: RecordFolder, ranks: Ranks) -> list[ClipRecord]:
    """The records of all clips, of which each process makes a share, once all are there."""
    from avd.evaluation.judging import measure_share

    with ui.bars() as bar:
        measure_share(suite, clips, records, rank=ranks.rank, size=ranks.size, progress=bar("judging"))
        measured = records.wait(clips, bar("waiting for the records of others"))
    ranks.barrier()  # nobody may look for clips or records that the first process has removed
    return measured


def _is_videos(folder: Path) -> bool:
    """Whether videos are named, not a model. Raises UserError for a folder of neither."""
    from avd.data.captions import CAPTIONS_FILE
    from avd.types import UserError

    found = (folder / CAPTIONS_FILE).exists()
    if folder.is_dir() and not found and not (folder / "model_index.json").exists():
        raise UserError(f"{folder} is neither a folder of videos (no captions.jsonl) nor a model (no model_index.json)")
    return found


def _options(given: dict[str, int | None], changes: list[str]) -> dict[str, object]:
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
) -> None:
    """Print rows as one Markdown table; rows of one name and several seeds become mean and spread.

    Example: avd table runs/*/row.json > docs/results-table.md
    """
    from avd.evaluation.rows import read_results
    from avd.report import markdown_table

    typer.echo(markdown_table([row for file in files for row in read_results(file).rows]))
