"""The terms that ship: every module of this room that declares a `TERM`."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from pkgutil import iter_modules

import avd.objectives
from avd.objectives.source import DataSource
from avd.objectives.term import Term


@cache
def terms() -> dict[str, Term]:
    """All terms by name: those that judge rollouts first, of them those that read no other's notes, then by file.

    A file added to this folder is found; nothing else names it.
    """
    names = sorted(module.name for module in iter_modules(avd.objectives.__path__))
    modules = (import_module(f"avd.objectives.{name}") for name in names)
    found = [module.TERM for module in modules if isinstance(getattr(module, "TERM", None), Term)]
    found.sort(key=lambda term: (isinstance(term.source(term.section()), DataSource), bool(term.reads)))
    return {term.name: term for term in found}
