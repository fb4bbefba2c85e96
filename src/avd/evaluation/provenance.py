"""Where a row comes from: the code and the machine."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import yaml

from avd import __version__
from avd.distillation.numbers import NUMBERS, recorded_numbers
from avd.distillation.saved_student import BEST, SETTINGS_OF_RUN
from avd.engine.run_folder import RECIPE_FILE
from avd.evaluation.rows import Teacher
from avd.files import read_text
from avd.models.family import open_local
from avd.models.identity import entries_of, identity_of
from avd.types import UserError


def code_version() -> str:
    """The package's version, and the commit where it runs from a checkout ("-dirty" with uncommitted changes)."""
    package = Path(__file__).parent
    command = ["git", "-C", str(package), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        commit = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return __version__
    return f"{__version__}+{commit}" if commit else __version__


def machine() -> str:
    """The processor, for example "x86_64, 2 cores"."""
    return f"{platform.machine()}, {os.cpu_count()} cores"


def run_of(name: str) -> Path | None:
    """The folder of the run that a model's folder, or that of its best student, lies in, or that is named itself; None
    if there is no such run."""
    path = Path(name)
    best = [path.parent.parent] if path.parent.name == BEST else []
    folders = (path, path.parent, *best) if path.is_dir() else ()
    return next((folder for folder in folders if (folder / RECIPE_FILE).exists()), None)


def recipe_of(name: str) -> dict[str, Any] | None:
    """The recipe of the run whose folder holds the student, if there is one. Raises UserError if it is damaged."""
    run = run_of(name)
    if run is None:
        return None
    path = run / RECIPE_FILE
    try:
        recipe = yaml.safe_load(read_text(path))
    except (yaml.YAMLError, RecursionError):
        recipe = None
    if not isinstance(recipe, dict):
        raise UserError(f"{path} is no recipe of avd: restore it, or move the student out of the run's folder")
    return recipe


def numbers_of(model: str) -> int | None:
    """The `NUMBERS` of a row of this model: those that its run began with, as what is trained by older code is no
    student of today's; today's of a model that is no student. None of a run of before there was a record."""
    run = run_of(model)
    return NUMBERS if run is None or not (run / SETTINGS_OF_RUN).exists() else recorded_numbers(run)


def teacher_of(model: str, recipe: dict[str, Any] | None) -> Teacher | None:
    """The teacher that `recipe` names, or without a recipe the model itself, with the weights that it has now.

    The first values of each weight are read. None where it is not on this machine: nothing is fetched.
    """
    name, transformer = (model, None) if recipe is None else (recipe.get("model"), recipe.get("transformer"))
    if recipe is not None and recipe.get("teacher") is not None:
        name, transformer = recipe["teacher"], None
    if not isinstance(name, str):
        return None
    identity = weights_identity(name, transformer)
    return None if identity is None else Teacher(model=name, transformer=transformer, identity=identity)


def weights_identity(model: str, transformer: str | None) -> str | None:
    """The identity of a model's weights; None where it is not on this machine."""
    try:
        opened = open_local(model, transformer=transformer)
    except UserError:  # it has moved
        return None
    return None if opened is None else identity_of("weights", entries_of(opened.weights()))
