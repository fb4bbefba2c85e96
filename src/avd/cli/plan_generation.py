"""`avd plan --generate`: what making a video, or all of a benchmark's, with a model takes, and the cheapest ways."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from avd import ui

if TYPE_CHECKING:
    from avd.evaluation.benchmarks.layout import Layout
    from avd.planning.generation import GenerationPlan, GenerationPlanner
    from avd.planning.plan import Machine


def plan_generation(model: str, steps: int | None, machine: Machine, layout: Layout | None) -> dict[str, Any]:
    """Show the plan and return its numbers, those of all videos of `layout` too if there is one.

    Raises UserError for a model whose sizes are not known here.
    """
    from avd.models.family import read_facts, read_parts
    from avd.planning.generation import GenerationPlanner, Sampling

    facts = read_facts(model)
    clip, sampling = facts.settings, Sampling.of(facts.settings, steps)
    planner = GenerationPlanner(facts.sizes, read_parts(model), sampling, (clip.frames, clip.height, clip.width))
    plans = planner.cheapest(machine)
    _say(f"{model}, {_described(planner, is_own=clip.student_timesteps is not None or steps is not None)}")
    _say(f"{clip.frames} frames of {clip.height} x {clip.width}, {facts.sizes.tokens():,} tokens per clip")
    _say("")
    ui.out.print(_table(plans))
    _say("")
    first, gpu = plans[0], f"of {machine.memory / 1e9:,.1f} GB"
    words = f"with {_options(first)}: {_needed(first)} GB with the allowance, {gpu}"
    _say(f"fits {words}" if first.fits else f"does not fit {words}; no option that was tried makes it fit")
    parts = (f"{stage.name} {stage.seconds:,.1f} s ({stage.flops / 1e12:,.1f} TFLOP)" for stage in first.stages)
    _say(f"one video: {', '.join(parts)}:")
    kind = "" if machine.peak_tflops else ", an H100's in bfloat16"
    _say(f"products and convolutions at {machine.mfu:.0%} of {_peak(machine):g} TFLOP/s{kind}, and transfers from the")
    _say("host that do not hide behind them; without loading, and without what memory slows down in decoding")
    ways = planner.denoising_by_strides(machine)
    if ways:
        _say("denoising alone, by how the first half of its steps runs:")
        _say(_ways(ways))
    numbers = {
        "model": model,
        "memory": machine.memory,
        "plans": [plan.to_json() for plan in plans],
        "denoising_by_strides": ways,
    }
    return numbers if layout is None else numbers | {"benchmark": _plan_benchmark(layout, first, machine.gpus)}


def _plan_benchmark(layout: Layout, plan: GenerationPlan, gpus: int) -> dict[str, Any]:
    """Show what all videos of a benchmark take, and return the numbers."""
    benchmark, videos = layout.prompts.benchmark, len(layout.generations)
    alone, shared = plan.hours(videos), plan.hours(videos, gpus)
    _say(f"{benchmark.title}: {layout.summary()}")
    on_gpus = f", {_hours(shared)} on {gpus} GPUs" if gpus > 1 else ""
    _say(f"all of them: {_hours(alone)} of one GPU{on_gpus}, without the official code that judges them")
    return {
        "name": benchmark.name,
        "info": layout.prompts.digest,
        "videos": videos,
        "gpus": gpus,
        "gpu_hours": alone,
        "hours": shared,
    }


def _described(planner: GenerationPlanner, *, is_own: bool) -> str:
    sampling = planner.sampling
    what = f"{len(sampling.strides)} {'guided ' if sampling.guided else ''}steps"
    for which, name in enumerate(("rate", "resolution")):
        half = sum(strides[which] > 1 for strides in sampling.strides)
        what += f", {half} of them at half {name}" if half else ""
    return what if is_own else f"as its student of {what}"


def _ways(ways: dict[str, float]) -> str:
    full = ways["full"]
    return ", ".join(
        f"{name} {seconds:,.1f} s" + (f" ({full / seconds:.2f} times as fast)" if name != "full" else "")
        for name, seconds in ways.items()
    )


def _peak(machine: Machine) -> float:
    from avd.planning.plan import H100_TFLOPS

    return machine.peak_tflops or H100_TFLOPS["bfloat16"]


def _hours(hours: float) -> str:
    return f"{hours:,.1f} h" if hours >= 1 else f"{hours:.2g} h"


def _options(plan: GenerationPlan) -> str:
    """As on the command line of `avd generate`."""
    placement = plan.placement
    words = [{"float8": "--fp8", "int8": "--int8"}[placement.weights]] if placement.weights else []
    words += [] if placement.offload == "none" else [f"--offload {placement.offload}"]
    words += ["--tiling"] if placement.tiling else []
    return " ".join(words) or "no option"


def _needed(plan: GenerationPlan) -> str:
    return f"{(plan.highest.total + plan.allowance) / 1e9:,.1f}"


def _table(plans: list[GenerationPlan]) -> Table:
    """A row for each plan: GB at each stage, the largest with the allowance, of the host; seconds."""
    table = Table(box=SIMPLE_HEAD, show_edge=False, padding=0, pad_edge=False)
    table.add_column("GB", no_wrap=True)
    for title in ("encoding", "denoising", "decoding", "needed", "of host", "seconds"):
        table.add_column(title, justify="right", min_width=8, no_wrap=True)
    for plan in plans:
        stages = (f"{stage.total / 1e9:,.1f}" for stage in plan.stages)
        host = max(stage.host for stage in plan.stages)
        table.add_row(_options(plan), *stages, _needed(plan), f"{host / 1e9:,.1f}", f"{plan.seconds:,.1f}")
    return table


def _say(text: str) -> None:
    ui.out.print(text, highlight=False, markup=False, soft_wrap=True)
