"""The protocol that an official benchmark's row was judged by, and which rows may stand in one table.

Numbers of a benchmark move with the texts that were sampled (VBench's total of one teacher by more than a point), the
number of samples, the size and length of clips and the version of the official code. So rows that differ in any of
these are not compared unless the user asks for it. The sampler and the negative prompt are recorded too; they belong to
the model, and a teacher's are not its student's.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from avd.evaluation.rows import Row
from avd.evaluation.suite import Values
from avd.evaluation.suites import suite_class
from avd.types import UserError

_OF_THE_MODEL = ("sampler", "negative_prompt")
"""Keys that two rows of one protocol may differ in."""
_LONG, _SHOWN = 64, 12
"""Characters of a value that is too long to be shown, and those that are shown of it."""


def check_protocols(rows: Sequence[Row]) -> None:
    """Raise UserError, naming what differs and where, if rows that one suite judged differ in protocol."""
    for suite in dict.fromkeys(suite for row in rows for suite in row.scores):
        check_same_protocol([(row.name, row.protocol) for row in rows if suite in row.scores])


def check_same_protocol(named: Sequence[tuple[str, dict[str, Any] | None]]) -> None:
    """Raise UserError, naming what differs and where, if one of these protocols is not the first's."""
    for name, protocol in named[1:]:
        first_name, first = named[0]
        for key in _differing([first, protocol]):
            raise UserError(
                f'protocols differ: {key} is {_text(first, key)} for "{first_name}" and {_text(protocol, key)} for '
                f'"{name}", so their numbers do not compare: make the videos alike and judge them by the same code, '
                "or show both with `avd table --mixed-protocols`"
            )


def protocol_texts(rows: Sequence[Row]) -> list[str]:
    """For each row, those parts of its protocol in which rows of its suite differ; empty where none does."""
    texts = []
    for row in rows:
        others = [each.protocol for each in rows if each.scores.keys() & row.scores.keys()]
        texts.append(", ".join(f"{key} {_text(row.protocol, key)}" for key in _differing(others)))
    return texts


def partial_notes(rows: Sequence[Row]) -> list[str]:
    """A line for each row whose dimensions are not all there, and which therefore has no total."""
    notes = (
        f"{row.name}: partial, {missing} of {count} dimensions of {suite} are missing; there is no total."
        for row in rows
        for suite, values in row.scores.items()
        for missing, count in _missing(suite, values)
    )
    return list(dict.fromkeys(notes))


def _missing(suite: str, values: Values) -> Iterator[tuple[int, int]]:
    """How many dimensions are missing, and how many there are, if some are."""
    scoring = getattr(suite_class(suite), "scoring", None)
    if scoring is not None and (missing := scoring.missing(values)):
        yield len(missing), len(scoring.dimensions)


def _differing(protocols: Sequence[dict[str, Any] | None]) -> list[str]:
    """The keys in which protocols differ, in the order in which they first appear."""
    flat = [_flat(protocol) for protocol in protocols]
    keys = dict.fromkeys(key for each in flat for key in each)
    return [key for key in keys if len({json.dumps(each.get(key)) for each in flat}) > 1]


def _flat(protocol: dict[str, Any] | None) -> dict[str, Any]:
    """What rows of one protocol have in common, the numbers of samples each by itself."""
    found: dict[str, Any] = {}
    for key, value in (protocol or {}).items():
        if key not in _OF_THE_MODEL:
            found |= (
                {f"{key} of {name}": inner for name, inner in value.items()}
                if isinstance(value, dict)
                else {key: value}
            )
    return found


def _text(protocol: dict[str, Any] | None, key: str) -> str:
    """A value as shown; the start of one that is long, such as a digest."""
    value = _flat(protocol).get(key)
    text = "not recorded" if value is None else str(value)
    return text if len(text) < _LONG else f"{text[:_SHOWN]}…"
