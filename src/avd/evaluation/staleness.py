"""Rows that no longer describe the code or the model that they name.

A row of videos that were sampled is stale where

    its `numbers` are not today's (`numbers.NUMBERS`), or it is of before rows had any;
    its teacher, or the model that made the videos, is on this machine with other weights than the row's.

A model that is not on this machine speaks neither for nor against a row. Rendered clips, and videos of which nobody
recorded how they were made, depend on no weights and are never stale.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

from avd.distillation.numbers import NUMBERS
from avd.evaluation.provenance import weights_identity
from avd.evaluation.rows import Row


def stale_reasons(rows: Iterable[Row]) -> dict[str, str]:
    """Why rows are stale, by name; those that are not have no reason."""
    found: dict[str, str] = {}
    identity = cache(weights_identity)  # rows share their teachers, which do not change meanwhile
    for row in rows:
        reason = None
        if row.network_calls and row.numbers is None:
            reason = "it is of before rows recorded which numbers they are of"
        elif row.network_calls and row.numbers != NUMBERS:
            reason = f"its numbers are version {row.numbers}, today's are version {NUMBERS}"
        elif row.network_calls and row.teacher is not None:
            today = identity(row.teacher.model, row.teacher.transformer)
            reason = None if today in (None, row.teacher.identity) else f"{row.teacher.model} has other weights today"
        if reason is not None:
            found.setdefault(row.name, reason)
    return found
