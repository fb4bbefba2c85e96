"""Named colours of the built-in world: muted, natural, apart in hue.

All colours are sRGB in [0, 1]. The first `n` entries of `COLOURS` are the palette of a level with `n` colours, so
that a richer level only adds names and never changes a colour.
"""

from __future__ import annotations

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.66, 0.33, 0.30),
    "yellow": (0.77, 0.67, 0.34),
    "green": (0.36, 0.56, 0.36),
    "blue": (0.32, 0.43, 0.67),
    "purple": (0.53, 0.35, 0.60),
    "teal": (0.29, 0.58, 0.57),
    "orange": (0.78, 0.50, 0.29),
    "pink": (0.78, 0.53, 0.62),
    "brown": (0.44, 0.32, 0.25),
}
"""Object colours before jitter."""

COLOUR_JITTER = 0.03
"""Half-width of the uniform jitter added to each channel of an object's colour."""

BACKGROUNDS: tuple[tuple[float, float, float], ...] = (
    (0.82, 0.79, 0.73),  # sand
    (0.76, 0.80, 0.83),  # mist
    (0.79, 0.82, 0.76),  # pale sage
    (0.83, 0.78, 0.78),  # pale rose
    (0.78, 0.78, 0.78),  # ash
    (0.86, 0.85, 0.82),  # paper
)
"""End points of the background gradients, before jitter."""

BACKGROUND_JITTER = 0.025
