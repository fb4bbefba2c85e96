"""Recipes as YAML: shipped or files, one extending another, changed from the command line.

A recipe may start from another one (`extends: avd`), shipped or a file named relative to its own folder, and change a
few values. The command line changes values of either by dotted path (`objective.temporal.weight=0.1`). The resolved
recipe, with nothing left implicit, is saved with the run.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from avd.config.recipe import Recipe
from avd.types import UserError


def shipped_recipes() -> dict[str, str]:
    """Name and text of the recipes in the package."""
    folder = resources.files("avd") / "recipes"
    return {p.name.removesuffix(".yaml"): p.read_text("utf-8") for p in folder.iterdir() if p.name.endswith(".yaml")}


def load_recipe(name: str, overrides: Iterable[str] = ()) -> Recipe:
    """A shipped recipe by name or a YAML file by path, with `KEY=VALUE` overrides, validated.

    Raises UserError naming the nearest known key for an unknown one, and the value found for a bad one.
    """
    values = _resolve(name)
    for override in overrides:
        key, found, text = override.partition("=")
        if not found:
            raise UserError(f"override {override!r} has no value: write it as KEY=VALUE")
        _set(values, key.strip(), _parse_yaml(text, f"override {override!r}"))
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise UserError(_one_line(f"recipe {name}: {_explain(error)}")) from error


def _resolve(name: str, *, folder: Path = Path(), seen: tuple[str, ...] = ()) -> dict[str, Any]:
    """A recipe's values over those of the one it extends; a file's name is relative to `folder`."""
    if name not in shipped_recipes():
        name = os.path.normpath(folder / name)
    if name in seen:
        raise UserError(f"recipe {name} extends itself: {' -> '.join((*seen, name))}")
    values = _parse_yaml(_read(name), f"recipe {name}")
    if not isinstance(values, dict):
        raise UserError(f"recipe {name} holds no keys: write it as YAML like the shipped ones")
    base = values.pop("extends", None)
    if not isinstance(base, str | None):
        raise UserError(f"recipe {name} extends {base!r}: name one recipe, shipped or a file")
    return values if base is None else _merge(_resolve(base, folder=Path(name).parent, seen=(*seen, name)), values)


def _read(name: str) -> str:
    shipped = shipped_recipes()
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
    except yaml.YAMLError as error:
        raise UserError(_one_line(f"{what} is not YAML: {error}")) from error


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


def _explain(error: ValidationError) -> str:
    """The first problem."""
    problem = error.errors()[0]
    where = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        known = _known_keys(problem["loc"][:-1])
        return f"unknown key {where}{_nearest(str(problem['loc'][-1]), known) or ': known are ' + ', '.join(known)}"
    if problem["type"] == "missing":
        return f"{where} is missing"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{where or 'recipe'} is {problem['input']!r}: {message[0].lower()}{message[1:]}"


def _known_keys(path: tuple[int | str, ...]) -> list[str]:
    """Keys of the section at `path`."""
    section: type[BaseModel] = Recipe
    for part in path:
        inner = section.model_fields[str(part)].annotation
        assert isinstance(inner, type) and issubclass(inner, BaseModel)
        section = inner
    return list(section.model_fields)


def _nearest(word: str, known: Iterable[str]) -> str:
    match = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" (did you mean {match[0]}?)" if match else ""


def _one_line(text: str) -> str:
    return " ".join(text.split())
