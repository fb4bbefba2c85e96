"""Export formats, one file each, and what writes a student in one of them."""

from __future__ import annotations

import pkgutil
from importlib import import_module

from avd.export.format import Format
from avd.types import UserError


def formats() -> dict[str, Format]:
    """All formats by name: of every module of this room that declares a `FORMAT`. Loads no torch."""
    found = [_format_of(f"{__name__}.{name}") for name in sorted(info.name for info in pkgutil.iter_modules(__path__))]
    return {each.name: each for each in found if each is not None}


def format_named(name: str) -> Format:
    """Raises UserError, naming those that there are, if there is none of that name."""
    found = formats()
    if name not in found:
        raise UserError(f"export format {name!r} is not one of {', '.join(found)}")
    return found[name]


def _format_of(module: str) -> Format | None:
    declared = getattr(import_module(module), "FORMAT", None)
    return declared if isinstance(declared, Format) else None
