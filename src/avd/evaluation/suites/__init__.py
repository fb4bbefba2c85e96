"""Evaluation suites, one file each. A file that is put here is found; nothing else names it."""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from dataclasses import fields
from importlib import import_module
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from avd.evaluation.suite import Measure, Suite
from avd.types import UserError


def suite_names() -> list[str]:
    """The suites there are, without loading any."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def suite_class(name: str) -> type[Suite]:
    """The suite of that name, a dataclass of its options. Raises UserError if there is none."""
    names = suite_names()
    if name not in names:
        raise UserError(f"suite {name!r} is not one of {', '.join(map(repr, names))}")
    suite: type[Suite] = import_module(f"{__name__}.{name}").SUITE
    return suite


def declared_measures(name: str) -> dict[str, Measure]:
    """A suite's measures by key, in declared order. Raises UserError if there is no such suite."""
    return {measure.key: measure for measure in suite_class(name).measures}


def make_suite(name: str, options: Mapping[str, Any]) -> Suite:
    """A suite with options, whose values may be text. Raises UserError for an option or a value that it does not take,
    and for a suite that cannot run here."""
    kind: Any = suite_class(name)
    types = get_type_hints(kind)
    known = [field.name for field in fields(kind)]
    values = {}
    for key, value in options.items():
        if key not in known:
            raise UserError(f"suite {name} has no option {key}: choose from {', '.join(known) or 'none'}")
        try:
            values[key] = TypeAdapter(types[key]).validate_python(value)
        except ValidationError as error:
            raise UserError(f"option {key} of suite {name} is {value!r}: {error.errors()[0]['msg']}") from error
    suite: Suite = kind(**values)
    reason = suite.unavailable()
    if reason is not None:
        raise UserError(f"suite {name} cannot run here: {reason}")
    return suite
