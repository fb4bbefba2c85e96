"""The docs say what the code does: keys and their values, commands and their options, recipes, links."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from pydantic import BaseModel

from avd.cli.main import app
from avd.config import COMMANDS, Recipe, load_recipe, shipped_recipes
from avd.methods.method import Method
from helpers.command import avd
from helpers.pages import as_on_page, console_blocks

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "benchmarks").rglob("*.md")])
RECIPES_PAGE = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")

each_page = pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])


def rows(text: str, heading: str) -> list[list[str]]:
    """The cells of the first table under a heading, without its head."""
    section = text.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def leaves(section: BaseModel, prefix: str = "") -> dict[str, Any]:
    """Every value of a recipe by its dotted key, as YAML holds it."""
    found: dict[str, Any] = {}
    for name, value in section:
        inner = leaves(value, f"{prefix}{name}.") if isinstance(value, BaseModel) else {prefix + name: value}
        found |= {key: list(value) if isinstance(value, tuple) else value for key, value in inner.items()}
    return found


def commands(text: str) -> Iterator[list[str]]:
    """What follows `avd` on each command line in a page's code, cut into words."""
    blocks = re.findall(r"^ *```(?:bash|sh|shell)\n(.*?)^ *```", text, flags=re.DOTALL | re.MULTILINE)
    prose = re.sub(r"^ *```.*?^ *```", "", text, flags=re.DOTALL | re.MULTILINE)
    lines = [line.strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    for line in lines + re.findall(r"`([^`\n]+)`", prose):
        if line.startswith("avd "):
            yield shlex.split(line, comments=True)[1:]


def faults(words: list[str]) -> list[str]:
    """What the command line `avd WORDS` names that does not exist."""
    command: Any = typer.main.get_command(app)
    path, rest = "avd", list(words)
    while rest and not rest[0].startswith("-") and hasattr(command, "commands"):
        if rest[0] not in command.commands:
            return [f"no command {path} {rest[0]}"]
        path, command = f"{path} {rest[0]}", command.commands[rest.pop(0)]
    known = {"--help"}.union(*([*option.opts, *option.secondary_opts] for option in command.params))
    found = [f"{path} has no option {word}" for word in rest if word.startswith("-") and word not in known]
    if path in {"avd distill", "avd compare", "avd plan"}:
        named = list(takewhile(lambda word: not word.startswith("-"), rest))
        found += [f"no recipe {name}" for name in named if not is_recipe(name, shipped_recipes())]
    models = {command: model for model, command in COMMANDS.items() if command.startswith("avd train ")}
    if (
        path in models
        and rest
        and not rest[0].startswith("-")
        and not is_recipe(rest[0], shipped_recipes(models[path]))
    ):
        found.append(f"no recipe {rest[0]}")
    return found


def is_recipe(name: str, shipped: dict[str, str]) -> bool:
    """A shipped recipe, or a file or place-holder, which the docs may name at will."""
    return name in shipped or name.endswith(".yaml") or name.isupper()


def test_every_recipe_key_is_reported_with_its_values() -> None:
    defaults, shipped = leaves(Recipe(name="required")), leaves(load_recipe("avd"))
    documented = {key.strip("`"): (default, avd) for key, _, default, avd, _ in rows(RECIPES_PAGE, "Every key")}
    assert set(documented) == set(defaults)
    for key, cells in documented.items():
        values = tuple(yaml.safe_load(cell) for cell in cells)
        assert values == (defaults[key], shipped[key]), key


def test_every_shipped_recipe_is_reported() -> None:
    assert {row[0].strip("`") for row in rows(RECIPES_PAGE, "Shipped recipes")} == set(shipped_recipes())


@each_page
def test_commands_exist(page: Path) -> None:
    assert [fault for words in commands(page.read_text(encoding="utf-8")) for fault in faults(words)] == []


@pytest.mark.parametrize(
    "line",
    [
        "destil avd",
        "train vea",
        "distill avdd",
        "distill avd --outptu x",
        "compare avdd",
        "generate m --half",
        "train vae avd",
    ],
)
def test_the_check_catches(line: str) -> None:
    assert len(faults(line.split())) == 1


@pytest.mark.parametrize(
    "line", ["--version", "train", "distill RECIPE -o x", "distill mine.yaml", "compare dmd avd", "train vae vae"]
)
def test_the_check_allows(line: str) -> None:
    assert faults(line.split()) == []


@each_page
def test_relative_links_resolve(page: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
    files = {link.partition("#")[0] for link in links if "://" not in link and not link.startswith("#")}
    assert sorted(file for file in files if not (page.parent / file).exists()) == []


def test_the_methods_shown_are_those_printed(capfd: pytest.CaptureFixture[str]) -> None:
    """If not: `python tests/helpers/pages.py docs/recipes.md`."""
    assert avd("methods") == 0
    assert as_on_page(capfd.readouterr().out) == console_blocks(RECIPES_PAGE)["avd methods"]


@pytest.mark.parametrize(("column", "shared"), [(1, "true"), (2, "false")])
def test_the_cost_of_a_cycle_is_what_its_method_declares(column: int, shared: str) -> None:
    passes = Method.of(load_recipe("avd", [f"rollout.shared={shared}"])).passes()
    least, mean, most = (sum(each.forwards(exit_stage) for each in passes) for exit_stage in (0, 1.5, 3))
    page = (ROOT / "docs" / "method.md").read_text(encoding="utf-8")
    (line,) = (line for line in page.splitlines() if line.startswith("| **range; average**"))
    assert line.split("|")[column + 1].strip(" *") == f"{least:g} to {most:g}; {mean:g}"
