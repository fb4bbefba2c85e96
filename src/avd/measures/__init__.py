"""Measures of anybody's videos, read from pixels: colour, contrast, optical flow. NumPy only.

The oracle of the built-in world, the monitors of a run and the suites of an evaluation all measure with these.
"""
