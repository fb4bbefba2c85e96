"""The averaged student in a checkpoint of a run, which need not have ended: to be written without training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

from torch import Tensor

from avd.config import Recipe
from avd.distillation.interpolating import saved_interpolator
from avd.distillation.model_record import check_high_expert, recorded_model
from avd.distillation.preflight import named_interpolator
from avd.distillation.starts import Start, open_high_expert, run_recipe, saved_start
from avd.engine.checkpoint import SavedTensors, list_checkpoints
from avd.export.format import Student
from avd.models.experts import ExpertsWeights, join_streams
from avd.models.family import TextToVideo, load_model
from avd.models.interpolator import FrameInterpolator
from avd.models.settings import read_settings
from avd.models.streams import TensorStream, stream
from avd.models.weights import Weights
from avd.sampling.choose import find_interpolator
from avd.types import UserError

SETTINGS_OF_RUN = "student.json"
"""How a run's student is sampled, in the run's folder from its beginning."""
BEST = "best"
"""The folder, in a run's, of its best averaged student."""


@contextmanager
def open_saved_student(run: Path, which: str) -> Iterator[Student]:
    """The student in a checkpoint, whose tensors are read as they are asked for, within a block.

    `which`: "latest", "best" (kept by `monitors.keep_best`) or the number of updates after which it was saved. Raises
    UserError if there is none, or if the run is none of `avd distill`.
    """
    recipe = run_recipe(str(run))
    if recipe is None:
        raise UserError(f"{run} is no run of `avd distill`: name the folder that it wrote")
    path, settings = _find(run, which), read_settings(run, SETTINGS_OF_RUN)
    if settings is None:
        raise UserError(
            f"run {run} does not say how its student is sampled ({SETTINGS_OF_RUN} is missing), as one begun with an "
            "earlier version: resume it with --resume, and try again"
        )
    model = load_model(recorded_model(run, recipe.model), transformer=recipe.transformer)
    folder = named_interpolator(recipe) or find_interpolator(model)
    interpolator = None if folder is None else FrameInterpolator.load(folder)
    high = open_high_expert(recipe, Start(model, model.weights()))
    check_high_expert(run, recipe.experts.high, None if high is None else high.weights)
    with _opened(path) as tensors:
        weights, adapter = saved_streams(recipe, tensors, model, high)
        interpolator = saved_interpolator(recipe, tensors, interpolator)
        yield Student(model, weights, adapter, asdict(settings), interpolator)


@contextmanager
def _opened(path: Path) -> Iterator[SavedTensors]:
    """A checkpoint with all its files open from the beginning: a run that continues may remove it meanwhile, and what
    is open can still be read. Raises UserError if it is gone already."""
    try:
        tensors = SavedTensors(path)
        tensors.check()
    except UserError:
        if path.exists():
            raise
        raise UserError(
            f"checkpoint {path} is gone, as the run has saved newer ones since: try again, or raise "
            "training.keep_checkpoints"
        ) from None
    with tensors:
        yield tensors


def origin_of(run: Path) -> Weights | None:
    """The weights of the model that the student of a run was distilled from; None if `run` is no run."""
    recipe = run_recipe(str(run))
    if recipe is None:
        return None
    weights = load_model(recorded_model(run, recipe.model), transformer=recipe.transformer).weights()
    return ExpertsWeights(weights, weights) if recipe.experts.train == "low" else weights


def saved_streams(
    recipe: Recipe, tensors: SavedTensors, model: TextToVideo, high: Start | None
) -> tuple[TensorStream, TensorStream | None]:
    """Weights of the averaged student in a checkpoint, adapters merged and with the expert of `high` noise if it has
    one, and its adapter if that is all it is. `recipe` and `model` are the run's."""
    start = saved_start("the checkpoint", recipe.name, recipe, tensors, "average", model)
    weights = stream(start.weights)
    if start.lora is not None and high is None:
        return weights, _adapter_stream(start)
    # In the order of the network, as at the end of the run; a checkpoint names its tensors in the alphabet's.
    names = [name.removeprefix("transformer.") for name, _ in model.hollow_velocity().named_parameters()]
    weights = replace(weights, shapes={name: weights.shapes[name] for name in names})
    return weights if high is None else join_streams(stream(high.weights), weights), None


def _adapter_stream(start: Start) -> TensorStream:
    """See `models.adapters.adapter_stream`."""
    lora = start.lora
    assert lora is not None
    shapes: dict[str, tuple[int, ...]] = {}
    for layer, (down, up) in lora.shapes.items():
        shapes |= {f"{layer}.lora_A.weight": down, f"{layer}.lora_B.weight": up}

    def make(name: str) -> Tensor:
        layer, _, matrix = name.partition(".lora_")
        down, up = lora.read(layer)
        return down if matrix.startswith("A") else up

    return TensorStream(shapes, make)


def _find(run: Path, which: str) -> Path:
    """The folder of a checkpoint. The best one holds the average alone."""
    saved, best = list_checkpoints(run / "checkpoints"), list_checkpoints(run / BEST)
    if which not in ("latest", "best") and not which.isdecimal():
        raise UserError(f"checkpoint {which!r} is neither latest nor best nor a number of updates")
    if which == "latest" and saved:
        return saved[-1]
    if which == "best" and best:
        return best[-1]
    steps = {int(path.name.rpartition("-")[2]): path for path in (*best, *saved)}
    if which.isdecimal() and int(which) in steps:
        return steps[int(which)]
    listed = ", ".join(map(str, sorted(steps))) or "none"
    hint = "; the best is kept with monitors.keep_best" if which == "best" else ""
    raise UserError(f"run {run} has no checkpoint {which} (it has those of updates {listed}): name another{hint}")
