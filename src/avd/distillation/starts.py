"""What the networks of a run begin as.

All of them as the run's model, unless its recipe names something else:

    teacher            a larger model of the same latents and prompts, say 14B for a student of 1.3B
    student.start      a student's folder, to train it further, or a run: its averaged student
    fake_score.start   a run: its fake score; or a model of the same latents and prompts, of any size
    experts.high       a run, or its student's folder: the frozen expert that takes the stages before the student's

Of a run, its newest checkpoint counts. With `roles: adapters` the student and those that learn beside it are LoRA
adapters of the run's model, so what they begin as must be one too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from avd.config import AdaptersRecipe, FakeScoreRecipe, Recipe, load_recipe
from avd.distillation.model_record import recorded_model
from avd.engine.checkpoint import SavedTensors, list_checkpoints
from avd.engine.ranks import Ranks
from avd.engine.run_folder import RECIPE_FILE
from avd.methods.method import Method
from avd.models.family import TextToVideo, load_model, read_facts, read_sizes
from avd.models.lora import LoraMatrices, MergedWeights
from avd.models.sizes import Sizes
from avd.models.weights import Renamed, Weights
from avd.types import UserError


@dataclass(frozen=True, eq=False)
class Start:
    """What a network begins as: that of `model`, with the weights `base`, changed by `lora` if there is one."""

    model: TextToVideo
    base: Weights
    lora: LoraMatrices | None = None
    checkpoint: SavedTensors | None = None
    """Where it is read from, if that is another run."""

    @property
    def weights(self) -> Weights:
        """With the LoRA merged."""
        return self.base if self.lora is None else MergedWeights(self.base, self.lora)


@dataclass(frozen=True)
class Starts:
    """What every role begins as. Roles that begin alike share one `Start`."""

    teacher: Start
    student: Start
    auxiliaries: Mapping[str, Start]
    high: Start | None = None
    """The frozen expert of high noise, for a student that is the one of low noise."""

    @property
    def high_weights(self) -> Weights | None:
        return None if self.high is None else self.high.weights

    @classmethod
    def alike(cls, model: TextToVideo, method: Method) -> Starts:
        """All roles begin as one model."""
        start = Start(model, model.weights())
        return cls(start, start, dict.fromkeys(method.networks, start), start if method.stages_before else None)

    def of(self, name: str) -> Start:
        """What the student, or an auxiliary that learns, begins as, by name."""
        return self.student if name == "student" else self.auxiliaries[name]

    def check_ranks(self, ranks: Ranks) -> None:
        """Raise UserError on all ranks if they found different checkpoints of a run to begin with: one that still
        saves, or a file system that shows new files late."""
        for checkpoint in self._checkpoints:
            if len(set(ranks.list_numbers(checkpoint.step))) > 1:
                raise UserError(
                    f"processes found different checkpoints of the run {checkpoint.path.parent.parent} to begin with: "
                    "wait until it has ended, and start again"
                )

    def close(self) -> None:
        """Let go of the files of other runs."""
        for checkpoint in self._checkpoints:
            checkpoint.close()

    @property
    def _checkpoints(self) -> list[SavedTensors]:
        starts = (self.student, *self.auxiliaries.values())
        return [start.checkpoint for start in starts if start.checkpoint is not None]


def resolve_starts(recipe: Recipe, method: Method, model: TextToVideo) -> Starts:
    """What a recipe's networks begin as. Files are opened, and no weights are read.

    Raises UserError for a start that there is not, or that does not fit the run's model.
    """
    own = Start(model, model.weights())
    teacher = own if recipe.teacher is None else _open_teacher(recipe.teacher, own)
    student = own if recipe.student.start is None else _open(recipe.student.start, "student.start", "student", own)
    _check_student(recipe, student, own)
    auxiliaries = {}
    for name, section in method.networks.items():
        start = own if section.start is None else _open(section.start, f"{name}.start", name, own)
        if recipe.roles == "adapters":
            _check_adapter(recipe, f"{name}.start", section.start, start, own)
        if section.ida is not None and start.base.shapes != student.base.shapes:
            raise _cannot_align(name, section)
        auxiliaries[name] = start
    return Starts(teacher, student, auxiliaries, open_high_expert(recipe, own))


def open_high_expert(recipe: Recipe, own: Start) -> Start | None:
    """The frozen expert of high noise of a recipe that trains the one of low noise; None for any other recipe.

    A run's is the student that it wrote, which changes only when that run ends again; `model_record` notices. Raises
    UserError if there is none, or if it ends elsewhere than the recipe's student begins.
    """
    name = recipe.experts.high
    if recipe.experts.train != "low":
        return None
    if name is None:
        raise UserError(
            f"recipe {recipe.name} trains the expert of low noise, and names none of high noise: distil that one first "
            "and set experts.high to its run"
        )
    if run_recipe(name) is not None:
        name = str(Path(name) / "student")
        if not Path(name).is_dir():
            raise UserError(
                f"experts.high is the run {recipe.experts.high}, which has not written its student yet: wait, or write "
                "that of a checkpoint with `avd export --checkpoint`, and name its folder"
            )
    high = _open(name, "experts.high", "student", own)
    if high.base.shapes != own.base.shapes:
        raise UserError(
            f"experts.high {name} is a network of other sizes than {recipe.model}: distil one of that model"
        )
    _check_high_settings(recipe, name)
    return high


def _check_high_settings(recipe: Recipe, name: str) -> None:
    """Raise UserError for an expert that was trained for other stages. A many-step model is for any."""
    settings, first = read_facts(name).settings, recipe.trained_stages.start
    wanted = recipe.rollout.timesteps[:first], recipe.rollout.timesteps[first]
    found = settings.student_timesteps, settings.end_timestep
    if settings.student_timesteps is not None and found != wanted:
        stages, ours = (
            f"{', '.join(f'{timestep:g}' for timestep in timesteps)} down to {end:g}"
            for timesteps, end in ((settings.student_timesteps, settings.end_timestep), wanted)
        )
        raise UserError(
            f"experts.high {name} is a student of the timesteps {stages}, and recipe {recipe.name} asks for {ours}: "
            "set rollout.timesteps and experts.high_stages to those it was trained with"
        )


def read_other_sizes(recipe: Recipe, method: Method) -> dict[str, Sizes]:
    """Sizes, by role, of the networks that are not of the run's model, from config files alone.

    Raises UserError for a start that there is not, or whose sizes are not known here.
    """
    names = {"teacher": recipe.teacher, **{name: section.start for name, section in method.networks.items()}}
    own, found = read_sizes(recipe.model), {}
    for role, name in names.items():
        if name is not None:
            sizes = read_sizes(_network_of(name, role)[0])
            if sizes != own:
                found[role] = sizes
    for name, section in method.networks.items():
        if section.ida is not None and name in found:
            raise _cannot_align(name, section)
    return found


def _cannot_align(name: str, section: FakeScoreRecipe) -> UserError:
    return UserError(
        f"{name}.start {section.start} is a network of other sizes than the student, and {name}.ida mixes them: name "
        f"one of the student's sizes, or set {name}.ida=null"
    )


def _network_of(name: str, role: str) -> tuple[str, str | None]:
    """The model whose network a start has, and the file of its transformer: of a run, the model of the role in it."""
    saved = run_recipe(name)
    if saved is None:
        return name, None
    section = getattr(saved, role, None)
    if saved.roles == "full" and isinstance(section, FakeScoreRecipe) and section.start is not None:
        return _network_of(section.start, role)
    return recorded_model(Path(name), saved.model), saved.transformer


def _open_teacher(name: str, own: Start) -> Start:
    teacher = load_model(name)
    if teacher.settings.student_timesteps is not None:
        raise UserError(f"teacher {name} is a student: name a many-step model")
    _check_identity("teacher", name, teacher, own.model)
    if _place(teacher) == _place(own.model):
        return own
    clip = own.model.settings
    teacher.settings = replace(
        teacher.settings, frames=clip.frames, height=clip.height, width=clip.width, fps=clip.fps
    )  # as are the clips of the student
    return Start(teacher, teacher.weights())


def _open(name: str, key: str, role: str, own: Start) -> Start:
    """What `role` begins as, by the recipe's `key`: a run's network of that role, of the student its average; or a
    model."""
    saved = run_recipe(name)
    network, transformer = _network_of(name, role)
    found = load_model(network, transformer=transformer)
    _check_identity(key, name, found, own.model)
    if found.settings.high_stages:
        raise UserError(f"{key} {name} is a student of two experts: name the run of one of them, or a model")
    source = found.source
    if saved is not None:
        checkpoints = list_checkpoints(Path(name) / "checkpoints")
        if not checkpoints:
            raise UserError(f"{key} is the run {name}, which has no checkpoint: name its student's folder, or another")
        tensors = SavedTensors(checkpoints[-1])
        tensors.check()  # opens all of it: it is read even if the run removes it meanwhile
        start = saved_start(key, name, saved, tensors, "average" if role == "student" else role, found)
    elif source is None or source.adapter is None:
        start = Start(found, found.weights())
    else:
        base = load_model(source.name, transformer=source.transformer)
        try:
            start = Start(base, base.weights(), LoraMatrices.of(base.read_adapter(source.adapter.folder)))
            start.weights  # noqa: B018  (raises where the LoRA does not fit)
        except ValueError as error:
            raise UserError(f"{key} {name} does not fit its base: {error}: name another") from error
    if _place(start.model) != _place(own.model):
        return start
    # One base serves all who share it.
    if start.lora is None and start.checkpoint is None:
        return own
    return replace(start, model=own.model, base=start.base if start.lora is None else own.base)


def saved_start(key: str, name: str, recipe: Recipe, tensors: SavedTensors, saved_as: str, model: TextToVideo) -> Start:
    """What a network of a run was when a checkpoint was saved: `saved_as` is its name there, `recipe` and `model` are
    the run's. Raises UserError, calling it `key` and the run `name`, if the run has no such network."""
    prefix = f"{saved_as}.transformer."
    names = {each.removeprefix(prefix): each for each in tensors if each.startswith(prefix)}
    if not names:
        raise UserError(f"{key} is the run {name}, which has no {saved_as.replace('_', ' ')}: name another run")
    if recipe.roles == "adapters":
        matrices = {each.replace(f".{saved_as}.weight", ".weight"): there for each, there in names.items()}
        return Start(model, model.weights(), _saved_lora(tensors, matrices, recipe.adapters), tensors)
    start = Start(model, Renamed(_Saved(tensors), names), checkpoint=tensors)
    if dict(start.base.shapes) != dict(model.weights().shapes):
        raise UserError(f"{key} is the run {name}, whose {saved_as} has other sizes than its model: name another run")
    return start


def _saved_lora(tensors: SavedTensors, names: Mapping[str, str], adapters: AdaptersRecipe) -> LoraMatrices:
    """From matrices in a checkpoint: `names` gives what each is called there."""
    layers = [name.removesuffix(".lora_A.weight") for name in names if name.endswith(".lora_A.weight")]

    def read(layer: str) -> tuple[Tensor, Tensor]:
        down, up = (tensors[names[f"{layer}.lora_{matrix}.weight"]] for matrix in "AB")
        return down, up * (adapters.alpha / adapters.rank)

    shapes = {
        layer: (tensors.shape(names[f"{layer}.lora_A.weight"]), tensors.shape(names[f"{layer}.lora_B.weight"]))
        for layer in layers
    }
    return LoraMatrices(shapes, read)


class _Saved:
    """The tensors of a checkpoint, as `Weights`."""

    def __init__(self, tensors: SavedTensors) -> None:
        self.region: Callable[[str, tuple[int, ...], tuple[int, ...]], Tensor] = tensors.region
        self.shapes = {name: tensors.shape(name) for name in tensors}


def run_recipe(name: str) -> Recipe | None:
    """The recipe of the run in the folder `name`; None if that is no run. Raises UserError if it is damaged."""
    path = Path(name) / RECIPE_FILE
    return load_recipe(str(path)) if path.exists() else None


def _check_identity(key: str, name: str, found: TextToVideo, model: TextToVideo) -> None:
    if found.identity != model.identity:
        raise UserError(
            f"{key} {name} has another VAE or text encoder than the model that is trained ({found.identity}, not "
            f"{model.identity}): name one of the same latents and prompts"
        )


def _check_student(recipe: Recipe, student: Start, own: Start) -> None:
    if recipe.roles == "adapters":
        _check_adapter(recipe, "student.start", recipe.student.start, student, own)
    elif student.base.shapes != own.base.shapes:
        raise UserError(
            f"student.start {recipe.student.start} is a network of other sizes than {recipe.model}: name that as the "
            "model, as a student has its model's sizes"
        )


def _place(model: TextToVideo) -> tuple[Path | None, ...] | None:
    """Where a model's weights lie; None for one made in memory."""
    source = model.source
    if source is None:
        return None
    transformer = None if source.transformer is None else Path(source.transformer).resolve()
    adapter = None if source.adapter is None else source.adapter.folder.resolve()
    return source.folder.resolve(), transformer, adapter


def _check_adapter(recipe: Recipe, key: str, name: str | None, start: Start, own: Start) -> None:
    """Raise UserError for a start that an adapter of the run's model cannot begin as."""
    if name is None:
        return
    model, lora, rank = recipe.model, start.lora, recipe.adapters.rank
    if lora is None or start.model is not own.model:
        raise UserError(f"{key} {name} is no LoRA of {model}, as roles=adapters needs: name one, or set roles=full")
    targets = recipe.adapters.targets or own.model.sizes.adapter_targets
    layers = {
        layer
        for layer in (each.removesuffix(".weight") for each in own.base.shapes)
        if any(f".{layer}".endswith(f".{target}") for target in targets)
    }
    if lora.ranks != dict.fromkeys(layers, rank):
        ranks = ", ".join(map(str, sorted(set(lora.ranks.values()))))
        raise UserError(
            f"{key} {name} is a LoRA of rank {ranks} on {len(lora.ranks)} layers, and the run's adapters have rank "
            f"{rank} on {len(layers)}: set adapters.rank and adapters.targets as it was trained with"
        )
