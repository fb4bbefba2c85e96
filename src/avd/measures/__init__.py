"""Measures of videos, read from pixels. NumPy only."""
