"""Recipes as YAML: shipped or files, one extending another, changed from the command line.

A recipe may start from another one (`extends: avd`), shipped or a file named relative to its own folder, and change a
few values. The command line changes values of either by dotted path (`objective.temporal.weight=0.1`). The resolved
recipe, with nothing left implicit, is saved with the run.

A recipe for `avd train` states its `kind` (`kind: vae`); one without a kind is for `avd distill`. Two keys speak of the
file rather than of the run, so they are neither inherited nor saved: `extends`, and `about`, one sentence that
`avd recipes` prints.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from avd.config.ablation import AblationRecipe
from avd.config.miniature import InterpolatorRecipe, TeacherRecipe, VAERecipe
from avd.config.recipe import Recipe
from avd.section import Section
from avd.types import UserError

R = TypeVar("R", bound=Section)

COMMANDS: dict[type[Section], str] = {
    Recipe: "avd distill",
    VAERecipe: "avd train vae",
    TeacherRecipe: "avd train teacher",
    InterpolatorRecipe: "avd train interpolator",
    AblationRecipe: "avd ablate",
}
"""The command that each sort of recipe is for."""


def shipped_recipes(model: type[Section] = Recipe) -> dict[str, str]:
    """Name and text of the recipes in the package that `model` validates."""
    return {name: text for name, text in _shipped().items() if _kind(_resolve(name)) == _kind_of(model)}


def about(text: str) -> str:
    """What a recipe's text says of itself in one sentence; empty if it says nothing."""
    return str(yaml.safe_load(text).get("about", ""))


def load_recipe(name: str, overrides: Iterable[str] = ()) -> Recipe:
    """A distillation's recipe; see `load`."""
    return load(Recipe, name, overrides)


def load(
    model: type[R], name: str, overrides: Iterable[str] = (), options: Mapping[str, str | int | None] | None = None
) -> R:
    """A shipped recipe by name or a YAML file by path, with `KEY=VALUE` overrides, validated as `model`.

    `options` are values by dotted key that win over the overrides; None leaves the recipe's own.

    Raises UserError naming the nearest known key for an unknown one, the value found for a bad one, and the command
    that a recipe of another kind is for.
    """
    values = _resolve(name)
    _check_kind(model, name, values)
    for override in overrides:
        key, found, text = override.partition("=")
        if not found:
            raise UserError(f"override {override!r} has no value: write it as KEY=VALUE")
        _set(values, key.strip(), _parse_yaml(text, f"override {override!r}"))
    for key, value in (options or {}).items():
        if value is not None:
            _set(values, key, value)
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise UserError(_one_line(f"recipe {name}: {_explain(model, error)}")) from error


@cache
def _shipped() -> dict[str, str]:
    folder = resources.files("avd") / "recipes"
    files = [*folder.iterdir(), *(folder / "train").iterdir()]
    return {p.name.removesuffix(".yaml"): p.read_text("utf-8") for p in files if p.name.endswith(".yaml")}


def _kind_of(model: type[Section]) -> str | None:
    field = model.model_fields.get("kind")
    return None if field is None else field.default


def _kind(values: Mapping[str, Any]) -> str | None:
    kind = values.get("kind")
    return kind if isinstance(kind, str) else None


def _check_kind(model: type[Section], name: str, values: Mapping[str, Any]) -> None:
    """Raise UserError if the recipe is one for another command."""
    found, needed = _kind(values), _kind_of(model)
    if found == needed:
        return
    command = next((command for other, command in COMMANDS.items() if _kind_of(other) == found), None)
    if command is None:
        kinds = ", ".join(kind for kind in map(_kind_of, COMMANDS) if kind is not None)
        raise UserError(f"recipe {name} is of kind {found}: known are {kinds}")
    reason = "it states no kind" if found is None else f"its kind is {found}"
    remedy = "a distillation's recipe has no kind" if needed is None else f"write kind: {needed}, or extend {needed}"
    raise UserError(f"recipe {name} is for `{command}` ({reason}), not for `{COMMANDS[model]}`: {remedy}")


def _resolve(name: str, *, folder: Path = Path(), seen: tuple[str, ...] = ()) -> dict[str, Any]:
    """A recipe's values over those of the one it extends; a file's name is relative to `folder`."""
    if name not in _shipped():
        name = os.path.normpath(folder / name)
    if name in seen:
        raise UserError(f"recipe {name} extends itself: {' -> '.join((*seen, name))}")
    values = _parse_yaml(_read(name), f"recipe {name}")
    if not isinstance(values, dict):
        raise UserError(f"recipe {name} holds no keys: write it as YAML like the shipped ones")
    base, sentence = values.pop("extends", None), values.pop("about", "")
    if not isinstance(base, str | None):
        raise UserError(f"recipe {name} extends {base!r}: name one recipe, shipped or a file")
    if not isinstance(sentence, str):
        raise UserError(_one_line(f"recipe {name}: about is {sentence!r}: write one sentence, in quotes"))
    return values if base is None else _merge(_resolve(base, folder=Path(name).parent, seen=(*seen, name)), values)


def _read(name: str) -> str:
    shipped = _shipped()
    if name in shipped:
        return shipped[name]
    path = Path(name)
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        near = _nearest(path.name, shipped)
        raise UserError(f"there is no recipe {name}{near}: shipped are {', '.join(sorted(shipped))}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"recipe {name} cannot be read: {error}") from error


def _parse_yaml(text: str, what: str) -> Any:
    try:
        return yaml.safe_load(text)
    except (
        yaml.YAMLError,
        ValueError,
        RecursionError,
    ) as error:  # numbers of thousands of digits, dates like 2024-99-99
        raise UserError(_one_line(f"{what[:200]} is not YAML: {error}")) from error


def _merge(base: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        inner = merged.get(key)
        merged[key] = _merge(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return merged


def _set(values: dict[str, Any], key: str, value: Any) -> None:
    *path, last = key.split(".")
    for part in path:
        values = values.setdefault(part, {})
        if not isinstance(values, dict):
            raise UserError(_one_line(f"override {key}: {part} is a value, not a section"))
    values[last] = value


def _explain(model: type[Section], error: ValidationError) -> str:
    """The first problem."""
    problem = error.errors()[0]
    where = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        known = _known_keys(model, problem["loc"][:-1])
        return f"unknown key {where}{_nearest(str(problem['loc'][-1]), known) or ': known are ' + ', '.join(known)}"
    if problem["type"] == "missing":
        return f"{where} is missing"
    message = problem["msg"].removeprefix("Value error, ")
    text = f"{message[0].lower()}{message[1:]}"
    return f"{where} is {problem['input']!r}: {text}" if where else text


def _known_keys(model: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    """Keys of the section of `model` at `path`."""
    section = model
    for part in path:
        if isinstance(part, str):  # a number is an item of the list before it
            inner = _section_in(section.model_fields[part].annotation)
            assert inner is not None
            section = inner
    return [field.alias or name for name, field in section.model_fields.items()]


def _section_in(annotation: Any) -> type[BaseModel] | None:
    """The section that an annotation is, or that it has as an alternative or as the items of a list."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for inner in get_args(annotation) if (found := _section_in(inner)) is not None), None)


def _nearest(word: str, known: Iterable[str]) -> str:
    match = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" (did you mean {match[0]}?)" if match else ""


def _one_line(text: str) -> str:
    return " ".join(text.split())
