"""`avd plan`: what a recipe takes, before anything is downloaded or rented."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from avd import ui
from avd.cli.plan_generation import plan_generation
from avd.types import UserError

if TYPE_CHECKING:
    from avd.distillation.preflight import Workload
    from avd.planning.fitting import Remedy
    from avd.planning.monitors import MonitorPlan
    from avd.planning.plan import Machine, Plan
    from avd.planning.preparation import Preparation
    from avd.planning.work import Work

_GPUS_OF_A_MACHINE = 8
_OPERATIONS = (("TFLOP", 1e12), ("GFLOP", 1e9), ("MFLOP", 1e6))
_UNITS = {"GB": 1e9, "GIB": 2.0**30}


def plan(
    recipe: Annotated[str | None, typer.Argument(help="A shipped recipe's name, or a YAML file.")] = None,
    generate: Annotated[
        str | None,
        typer.Option(
            "--generate",
            metavar="MODEL",
            help="In place of a recipe: what making a video with this model takes on one GPU, and the cheapest ways.",
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            "--steps",
            help="With --generate: guided steps of a many-step model; without, it stands for its student of 4 steps.",
            min=1,
            max=10_000,
        ),
    ] = None,
    suite: Annotated[
        str | None,
        typer.Option(
            "--suite", help="With --generate: the hours that all videos of a benchmark take, vbench or vbench2."
        ),
    ] = None,
    suite_info: Annotated[
        Path | None,
        typer.Option("--suite-info", help="With --suite: the benchmark's prompts, as for `avd generate`."),
    ] = None,
    flickering_samples: Annotated[
        int | None,
        typer.Option("--flickering-samples", help="With --suite: videos per prompt of VBench's temporal_flickering."),
    ] = None,
    gpus: Annotated[int, typer.Option("--gpus", help="GPUs, one process each.", min=1, max=65_536)] = 1,
    memory: Annotated[str, typer.Option("--memory", help="Memory of each, in GB or GiB.")] = "80GB",
    model: Annotated[
        str | None, typer.Option("--model", help="A model folder or a known hub id; default: the recipe's.")
    ] = None,
    changes: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a value of the recipe; repeatable.")
    ] = None,
    mfu: Annotated[float, typer.Option("--mfu", help="Share of the peak that the arithmetic reaches.")] = 0.4,
    peak_tflops: Annotated[
        float | None, typer.Option("--peak-tflops", help="Peak of one GPU; default: an H100's, 989 in bfloat16.")
    ] = None,
    json: Annotated[Path | None, typer.Option("--json", help="File for the plan's numbers.")] = None,
) -> None:
    """Say what a recipe takes in memory, arithmetic and time, whether it fits, and what would make it fit.

    Needs no weights, no GPU and no network. Examples: avd plan avd-wan2.1-1.3b --gpus 8 · avd plan --generate
    runs/mine/student --memory 24GB · avd plan --generate runs/mine/student --suite vbench --suite-info site-packages
    """
    from avd.config import load_recipe

    if (recipe is None) == (generate is None):
        raise UserError("name a recipe, or with --generate a model, and not both")
    overrides = list(changes or ()) + ([] if model is None else [f"model={model}"])
    if suite is None and (suite_info, flickering_samples) != (None, None):
        raise UserError("options of a benchmark are given and none is named: add --suite vbench or --suite vbench2")
    if suite is not None and generate is None:
        raise UserError("--suite goes with --generate: name the model that makes the videos")
    if generate is not None and (overrides or (gpus != 1 and suite is None)):
        raise UserError(
            "--generate has no recipe, and a video is made on one GPU: leave --model and --set out, and --gpus unless "
            "all videos of a --suite are shared out"
        )
    if generate is None and steps is not None:
        raise UserError("--steps goes with --generate: a recipe has its own")
    resolved = None if recipe is None else load_recipe(recipe, overrides)
    machine = _machine(gpus, memory, mfu, peak_tflops)

    from avd.distillation.preflight import resolve_workload
    from avd.evaluation.benchmarks.layout import read_layout
    from avd.files import check_can_make, write_json
    from avd.planning.fitting import find_remedy
    from avd.planning.monitors import plan_monitors
    from avd.planning.plan import Planner

    if json is not None:
        if json.exists():
            raise UserError(f"output {json} exists already: name another file")
        check_can_make(json)
    if resolved is None:
        assert generate is not None
        layout = None if suite is None else read_layout(suite, suite_info, flickering_samples=flickering_samples)
        numbers = plan_generation(generate, steps, machine, layout)
        if json is not None:
            write_json(json, numbers)
        return
    workload = resolve_workload(resolved, gpus)
    planner = Planner(workload.sizes, workload.others)
    made = planner.plan(resolved, machine)
    monitors, preparation = plan_monitors(made, workload.settings), _plan_preparation(workload, machine)
    remedy = None if made.fits else find_remedy(planner, resolved, machine)
    _show(made, monitors, preparation, remedy)
    if json is not None:
        write_json(json, _for_json(made, monitors, preparation, remedy))


def _machine(gpus: int, memory: str, mfu: float, peak_tflops: float | None) -> Machine:
    """Raises UserError for what no machine has."""
    size = _parse_memory(memory)
    if not 0 < mfu <= 1:
        raise UserError(f"--mfu is {mfu:g}: it must be above 0 and at most 1")
    if peak_tflops is not None and not 0 < peak_tflops < float("inf"):
        raise UserError(f"--peak-tflops is {peak_tflops:g}: it must be positive")

    from avd.planning.plan import Machine

    return Machine(gpus, size, mfu, peak_tflops)


def _parse_memory(text: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(GB|GiB)", text.strip(), flags=re.IGNORECASE)
    size = float(found[1]) * _UNITS[found[2].upper()] if found else 0.0
    if not size:
        raise UserError(f"--memory is {text!r}: write it as 80GB or 80GiB")
    return size


def _plan_preparation(workload: Workload, machine: Machine) -> Preparation | None:
    """None if the model does not say what encodes its clips, or the recipe learns from prompts alone."""
    from avd.models.family import read_parts
    from avd.planning.preparation import plan_preparation

    if workload.cached_clips == 0:
        return None
    try:
        parts = read_parts(workload.recipe.model)
    except UserError:
        return None
    return plan_preparation(parts, workload.sizes, workload.settings, machine, workload.cached_clips)


def _for_json(
    plan: Plan, monitors: MonitorPlan | None, preparation: Preparation | None, remedy: Remedy | None
) -> dict[str, Any]:
    fit = None if remedy is None else {"set": remedy.changes, "gpus": remedy.gpus, "plan": remedy.plan.to_json()}
    return {
        **plan.to_json(),
        "monitors": None if monitors is None else asdict(monitors),
        "preparation": None if preparation is None else preparation.to_json(),
        "remedy": fit,
    }


def _show(plan: Plan, monitors: MonitorPlan | None, preparation: Preparation | None, remedy: Remedy | None) -> None:
    from avd.methods.adapter_rates import explain_low_rates
    from avd.planning.plan import precision_of

    recipe, sizes, machine = plan.recipe, plan.sizes, plan.machine
    compute, clips = recipe.compute, recipe.training.batch * recipe.compute.context // machine.gpus
    millions = plan.parameters.network / 1e6
    _say(f"{recipe.name} on {recipe.model}: {millions:,.1f} M parameters, roles {recipe.roles}")
    _say(f"latents {' x '.join(map(str, sizes.latent_CFHW))}, {sizes.tokens():,} tokens per clip")
    _say(
        f"{machine.gpus} x {machine.memory / 1e9:,.1f} GB; batch {recipe.training.batch}, {clips} per rank, "
        f"{min(compute.microbatch or clips, clips)} at once; weights over {compute.shard or machine.gpus}; "
        f"{compute.dtype}; checkpointing {compute.checkpointing}"
    )
    for table in (_memory_table(plan), _work_table(plan)):
        _say("")
        ui.out.print(table)
    _say("")
    hours = plan.seconds * recipe.training.updates / 3600
    kind = "" if machine.peak_tflops else f", an H100's in {precision_of(recipe)}"
    _say(f"{_number(plan.seconds)} s per update, {_number(hours)} h for {recipe.training.updates:,} updates,")
    _say(f"at {machine.mfu:.0%} of {machine.peak_of(recipe):g} TFLOP/s per GPU{kind}")
    if monitors is not None:
        _say(_describe_monitors(monitors))
    if preparation is not None:
        _say(_describe_preparation(preparation))
    together = min(machine.gpus, _GPUS_OF_A_MACHINE)
    of_machine = "" if together == 1 else f", {plan.host * together / 1e9:,.0f} GB for {together} ranks on one machine"
    _say(f"host memory: {plan.host / 1e9:,.1f} GB per rank while a checkpoint is written{of_machine}")
    _say(_verdict(plan, remedy))
    low_rates = explain_low_rates(recipe)
    if low_rates is not None:
        _say(low_rates)


def _memory_table(plan: Plan) -> Table:
    resident, highest = plan.resident, plan.highest
    unit, scale = ("GB", 1e9) if plan.peak >= 1e9 else ("MB", 1e6)
    table = _table("memory per rank", unit)
    for name, size in {
        "frozen weights": resident.frozen_weights,
        "trained weights": resident.trained_weights,
        "average": resident.average,
        "optimizer": resident.optimizer,
        "batch": resident.batch,
        "gradients": highest.gradients,
        "gathered weights": highest.gathered,
        "activations": highest.activations,
        "optimizer's temporaries": highest.temporaries,
        f"peak, in the {highest.name}": plan.peak,
        "allowance for what is not counted": plan.allowance,
    }.items():
        table.add_row(name, f"{size / scale:,.1f}")
    return table


def _work_table(plan: Plan) -> Table:
    clips = plan.recipe.training.batch
    unit, scale = ("PFLOP", 1e15) if plan.flops >= 1e15 else ("TFLOP", 1e12)
    table = _table(f"cycle of {clips} clips", "forwards", "least", "most", unit)
    for part in plan.work:
        table.add_row(part.name, *_forwards([part]), f"{clips * part.flops / scale:,.1f}")
    table.add_row("all", *_forwards(plan.work), f"{plan.flops / scale:,.1f}")
    return table


def _forwards(parts: Sequence[Work]) -> Iterator[str]:
    for values in zip(*((part.forwards, part.least, part.most) for part in parts), strict=True):
        yield f"{sum(values):,.1f}"


def _table(title: str, *numbers: str) -> Table:
    table = Table(box=SIMPLE_HEAD, show_edge=False, padding=0, pad_edge=False)
    table.add_column(title, no_wrap=True)
    for number in numbers:
        table.add_column(number, justify="right", min_width=9, no_wrap=True)
    return table


def _describe_monitors(plan: MonitorPlan) -> str:
    unit, scale = ("GB", 1e9) if plan.peak >= 1e9 else ("MB", 1e6)
    clips = f"{plan.clips} clips, {plan.clips_per_rank} per rank"
    return (
        f"monitors, on {clips}: {_number(plan.references.seconds)} s once for the teacher's in {plan.teacher_steps} "
        f"steps,\n{_number(plan.measurement.seconds)} s for each of {plan.measurements:,} measurements; "
        f"{plan.share:.2%} of the time, at most {plan.peak / scale:,.1f} {unit}"
    )


def _describe_preparation(plan: Preparation) -> str:
    gpus = f"{plan.gpus} GPU{'s' if plan.gpus > 1 else ''}"
    words = f"preparing 1,000 clips: {_duration(plan.seconds_of(1000))} on {gpus}"
    if plan.cached is not None:
        words += f"; the {plan.cached:,} that the recipe names: {_duration(plan.seconds_of(plan.cached))}"
    work = f"VAE {_operations(plan.clip.flops)} a clip, text encoder {_operations(plan.caption.flops)} a caption"
    return f"{words}\n({work}); decoding of videos and disks are not counted"


def _verdict(plan: Plan, remedy: Remedy | None) -> str:
    needed = f"{_needed(plan)} with the allowance, of {plan.machine.memory / 1e9:,.1f} GB"
    if plan.fits:
        return f"fits: {needed}"
    if remedy is None:
        return f"does not fit: {needed}; no change that was tried makes it fit"
    words = [] if remedy.gpus is None else [f"--gpus {remedy.gpus}"]
    words += [f"--set {key}={'null' if value is None else value}" for key, value in remedy.changes.items()]
    lines = [
        f"does not fit: {needed}",
        f"fits with {' '.join(words)}: {_needed(remedy.plan)}, {_number(remedy.plan.seconds)} s per update",
    ]
    if "roles" in remedy.changes:
        lines.append("adapters learn less than full models, and at rates of their own, which are among these values")
    return "\n".join(lines)


def _needed(plan: Plan) -> str:
    return f"{(plan.peak + plan.allowance) / 1e9:,.1f} GB"


def _number(value: float) -> str:
    return f"{value:,.1f}" if value >= 1 else f"{value:.2g}"


def _duration(seconds: float) -> str:
    return f"{_number(seconds)} s" if seconds < 3600 else f"{_number(seconds / 3600)} h"


def _operations(flops: float) -> str:
    unit, scale = next((each for each in _OPERATIONS if flops >= each[1]), _OPERATIONS[-1])
    return f"{flops / scale:,.1f} {unit}"


def _say(text: str) -> None:
    ui.out.print(text, highlight=False, markup=False, soft_wrap=True)
