"""Experiments: many runs to rows. They show their progress through what the caller passes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

from avd import ui

Bars = Callable[[], AbstractContextManager[Callable[[str], ui.Bar]]]
"""Makes progress bars by title, for the duration of a block, as `ui.bars` does."""
Say = Callable[[str], None]
"""Shows a line."""
