"""Fixtures."""

from helpers.rows import make_row

__all__ = ["make_row"]
