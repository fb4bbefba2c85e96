"""Measures of anybody's videos, read from pixels: colour, sharpness, change, motion. NumPy and OpenCV.

The oracle of the built-in world, the monitors of a run and the suites of an evaluation all measure with these.
"""
