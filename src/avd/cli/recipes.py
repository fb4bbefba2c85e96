"""`avd recipes` and `avd methods`: what ships."""

from __future__ import annotations

from typing import TYPE_CHECKING

from avd import ui

if TYPE_CHECKING:
    from avd.objectives.term import ActiveTerm


def recipes() -> None:
    """List the recipes that ship, with the command that each is for.

    Example: avd recipes
    """
    from avd.config import COMMANDS, about, shipped_recipes

    shipped = {command: shipped_recipes(model) for model, command in COMMANDS.items()}
    width = max(len(name) for texts in shipped.values() for name in texts)
    for command, texts in shipped.items():
        _print(f"{command} RECIPE", bold=True)
        for name, text in sorted(texts.items()):
            _print(f"  {name:{width}}  {about(text)}")


def methods() -> None:
    """List the terms that a recipe may weigh, what they need, and the methods that shipped recipes make of them.

    Example: avd methods
    """
    from avd.config import load_recipe, shipped_recipes
    from avd.methods.method import Method
    from avd.objectives.registry import terms

    _print("terms of an objective (set objective.TERM.weight)", bold=True)
    width = max(map(len, terms()))
    for name, term in terms().items():
        _print(f"  {name:{width}}  {term.about} ({term.paper})")
    _print("methods, with the network forwards of one update", bold=True)
    for name in sorted(shipped_recipes()):
        recipe = load_recipe(name)
        method = Method.of(recipe)
        weights = " + ".join(_weighted(each) for each in method.terms)
        needs = f"; needs {', '.join(each.name for each in method.auxiliaries)}" if method.auxiliaries else ""
        _print(f"  {name}: {weights}{needs}; {method.forwards(len(recipe.trained_stages)):g} forwards")


def _weighted(each: ActiveTerm) -> str:
    start = f" (from update {each.section.start})" if each.section.start else ""
    every = f" (in 1 of {each.every} updates)" if each.every > 1 else ""
    return f"{each.section.weight:g} {each.name}{start}{every}"


def _print(text: str, *, bold: bool = False) -> None:
    ui.out.print(text, style="bold" if bold else None, highlight=False, markup=False, soft_wrap=True)
