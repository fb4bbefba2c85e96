"""`avd recipes`."""

from __future__ import annotations

from avd import ui


def recipes() -> None:
    """List the recipes that ship, with the command that each is for.

    Example: avd recipes
    """
    from avd.config import COMMANDS, about, shipped_recipes

    shipped = {command: shipped_recipes(model) for model, command in COMMANDS.items()}
    width = max(len(name) for texts in shipped.values() for name in texts)
    for command, texts in shipped.items():
        ui.out.print(f"{command} RECIPE", style="bold", highlight=False)
        for name, text in sorted(texts.items()):
            ui.out.print(f"  {name:{width}}  {about(text)}", highlight=False, markup=False, soft_wrap=True)
