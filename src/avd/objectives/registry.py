"""The terms that ship: every module of this room, or of a folder in it, that declares a `TERM`."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from pkgutil import walk_packages

import avd.objectives
from avd.objectives.source import DataSource
from avd.objectives.term import Term


@cache
def terms() -> dict[str, Term]:
    """All terms by name: those that judge rollouts first, of them those that read no other's notes, then by file.

    A file added to this folder is found; nothing else names it.
    """
    names = [module.name for module in walk_packages(avd.objectives.__path__, "avd.objectives.")]
    names.sort(key=lambda name: name.rpartition(".")[2])
    modules = (import_module(name) for name in names)
    found = [module.TERM for module in modules if isinstance(getattr(module, "TERM", None), Term)]
    found.sort(key=lambda term: (isinstance(term.source(term.section()), DataSource), bool(term.reads)))
    return {term.name: term for term in found}
