"""Measures the references of a small run and then its student once, in as many processes as are started, and counts.

    python -m helpers.monitor_ranks FOLDER [KEY=VALUE ...]

Each rank writes FOLDER/rank-R.json: the clips in each call of each network, how many videos it decoded and measured,
and the metrics.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from avd.config import Recipe
from avd.distillation.monitoring import suites
from avd.distillation.task import DistillTask
from avd.engine.ranks import Ranks, process_group
from avd.types import Stopped
from helpers.tiny import tiny_data, tiny_model
from helpers.watched_run import monitor_of, watched_recipe


def measure_and_count(folder: Path, recipe: Recipe, ranks: Ranks) -> dict[str, Any]:
    """What one rank does, and what it found."""
    model = tiny_model()
    task = DistillTask(recipe, model, tiny_data(model), None, ranks)
    counts: dict[str, Any] = {"teacher": [], "student": [], "decoded": 0, "measured": 0}
    for name, network in {"teacher": task.roles.teacher, "student": task.roles.average.network}.items():
        assert isinstance(network, nn.Module)
        network.register_forward_pre_hook(_noting(counts[name]))
    model.decode_video = _counted(model.decode_video, counts, "decoded")  # type: ignore[method-assign]
    suites.measure_pixels, original = (
        _counted(suites.measure_pixels, counts, "measured"),
        suites.measure_pixels,
    )
    try:
        monitor = monitor_of(task)
        assert monitor is not None
        monitor.find_references(folder, lambda text: None)
        references = {name: counts[name] for name in ("decoded", "measured")}
        counts["metrics"] = monitor.measure().metrics
    finally:
        suites.measure_pixels = original
    return {**counts, "references": references}


def _noting(batches: list[int]) -> Callable[..., None]:
    return lambda module, inputs: batches.append(len(inputs[0]))


def _counted(function: Callable[[Any], Any], counts: dict[str, Any], name: str) -> Callable[[Any], Any]:
    def counted(video: Any) -> Any:
        counts[name] += 1
        return function(video)

    return counted


if __name__ == "__main__":
    torch.set_num_threads(1)
    path, recipe = Path(sys.argv[1]), watched_recipe(*sys.argv[2:])
    with process_group(recipe.compute) as ranks:
        try:
            found = measure_and_count(path, recipe, ranks)
        except Stopped as stopped:
            print(stopped, file=sys.stderr)
            raise SystemExit(stopped.code) from None
        (path / f"rank-{ranks.rank}.json").write_text(json.dumps(found))
    os._exit(0)  # native threads of the libraries may abort a process that ends by itself; the result is written
