"""What happens in a clip, before it is drawn: objects, their motion, the background, the camera and the light.

Scenes are sampled from integers alone. Only the four basic operations and comparisons are used on the random draws, all
exactly rounded by IEEE 754, so the same (seed, split, index) gives the same scene on every machine.

Units: lengths are fractions of the frame's side (0 is left or top, 1 is right or bottom), times are frames.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from avd.world.palette import BACKGROUND_JITTER, BACKGROUNDS, COLOUR_JITTER, COLOURS

Speed = Literal["still", "slow", "fast"]
Split = Literal["train", "heldout"]

_DIAGONAL = 0.5**0.5
DIRECTIONS: dict[str, tuple[float, float]] = {
    "left": (-1.0, 0.0),
    "right": (1.0, 0.0),
    "up": (0.0, -1.0),
    "down": (0.0, 1.0),
    "up-left": (-_DIAGONAL, -_DIAGONAL),
    "up-right": (_DIAGONAL, -_DIAGONAL),
    "down-left": (-_DIAGONAL, _DIAGONAL),
    "down-right": (_DIAGONAL, _DIAGONAL),
}
"""Unit vectors (x to the right, y down)."""

SHAPES: tuple[str, ...] = ("ball", "box", "triangle", "diamond", "ring")

SPEEDS: dict[Speed, tuple[float, float]] = {"still": (0.0, 0.0), "slow": (0.0125, 0.0165), "fast": (0.034, 0.043)}
"""Range of each speed class in sides per frame."""

SPEED_SHARE: dict[Speed, float] = {"still": 0.3, "slow": 0.35, "fast": 0.35}

RADII: tuple[tuple[float, float], ...] = ((0.105, 0.12), (0.14, 0.16))
"""Ranges of the circumscribed radius: small and large."""

_SPLITS: dict[Split, int] = {"train": 0, "heldout": 1}
_GAP = 0.07
"""Least distance between the outlines of two objects where crossings are not allowed."""


@dataclass(frozen=True)
class Level:
    """How rich a world is. A higher level adds to the one before it."""

    max_objects: int
    colours: tuple[str, ...]
    shapes: tuple[str, ...]
    directions: tuple[str, ...]
    crossings: bool = False
    textures: bool = False
    pan: float = 0.0
    """Largest camera speed in sides per frame."""
    light_drift: float = 0.0
    """Largest relative change of the light over the clip."""


LEVELS: tuple[Level, ...] = (
    Level(2, tuple(COLOURS)[:6], SHAPES[:3], tuple(DIRECTIONS)[:4]),
    Level(3, tuple(COLOURS)[:8], SHAPES[:4], tuple(DIRECTIONS), crossings=True),
    Level(3, tuple(COLOURS), SHAPES, tuple(DIRECTIONS), crossings=True, textures=True, pan=0.004, light_drift=0.12),
)


@dataclass(frozen=True)
class Thing:
    """One object: what it is and how it moves. Position is its centre at frame 0; it bounces off the frame's border."""

    shape: str
    colour: str
    rgb: tuple[float, float, float]
    radius: float
    position: tuple[float, float]
    speed: Speed
    direction: str
    velocity: tuple[float, float]
    """Sides per frame; zero when still."""
    texture: float = 0.0
    """Contrast of the stripes drawn on it."""

    def centre(self, frame: float) -> tuple[float, float]:
        """Centre at `frame`, reflected at the walls."""
        x, y = (
            _reflect(p + v * frame, self.radius, 1.0 - self.radius)
            for p, v in zip(self.position, self.velocity, strict=True)
        )
        return x, y


@dataclass(frozen=True)
class Background:
    """A linear gradient between two colours along an axis, with optional texture."""

    start: tuple[float, float, float]
    end: tuple[float, float, float]
    axis: tuple[float, float]
    texture: float = 0.0


@dataclass(frozen=True)
class Scene:
    """All that is needed to draw a clip, and the truth an oracle's reading is compared with."""

    things: tuple[Thing, ...]
    """Back to front."""
    background: Background
    pan: tuple[float, float] = (0.0, 0.0)
    light: float = 0.0
    """Relative change of the light from the first frame to the last."""
    frames: int = 17


def scene_rng(seed: int, split: Split, index: int, *more: int) -> np.random.Generator:
    """Generator of the scene `index`, or of something `more` about it; the two splits never share a stream."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence((seed, _SPLITS[split], index, *more))))


def sample_scene(rng: np.random.Generator, level: Level, frames: int = 17) -> Scene:
    """Draw a scene. All objects that move in a clip share its speed class, so a clip is still, slow or fast."""
    count = 1 + int(rng.random() * level.max_objects)
    speed = _choose_weighted(rng, SPEED_SHARE)
    appearances = _sample_appearances(rng, level, count)
    things = _place(rng, level, appearances, speed, frames)
    pan = (0.0, 0.0)
    if level.pan and rng.random() < 0.5:
        pan = (_uniform(rng, -level.pan, level.pan), _uniform(rng, -level.pan, level.pan))
    light = _uniform(rng, -level.light_drift, level.light_drift) if level.light_drift else 0.0
    return Scene(things, _sample_background(rng, level), pan, light, frames)


@dataclass(frozen=True)
class _Appearance:
    shape: str
    colour: str
    rgb: tuple[float, float, float]
    radius: float
    texture: float


def _sample_appearances(rng: np.random.Generator, level: Level, count: int) -> list[_Appearance]:
    """Shapes may repeat within a clip, colours may not: a name then points at one object."""
    left = list(level.colours)
    appearances = []
    for _ in range(count):
        colour = left.pop(int(rng.random() * len(left)))
        shape = level.shapes[int(rng.random() * len(level.shapes))]
        radius = _uniform(rng, *RADII[int(rng.random() * len(RADII))])
        texture = 0.12 if level.textures and rng.random() < 0.5 else 0.0
        appearances.append(_Appearance(shape, colour, _jitter(rng, COLOURS[colour], COLOUR_JITTER), radius, texture))
    return appearances


def _place(
    rng: np.random.Generator, level: Level, appearances: list[_Appearance], speed: Speed, frames: int
) -> tuple[Thing, ...]:
    """Draw positions and directions until no two objects touch (or, with crossings, until they start apart)."""
    checked = range(1) if level.crossings else range(frames)
    while True:
        things = tuple(_throw(rng, level, appearance, speed, first=i == 0) for i, appearance in enumerate(appearances))
        if all(_apart(a, b, checked) for i, a in enumerate(things) for b in things[:i]):
            return things


def _throw(rng: np.random.Generator, level: Level, appearance: _Appearance, speed: Speed, first: bool) -> Thing:
    mine: Speed = speed if first or rng.random() < 0.6 else "still"
    pace = _uniform(rng, *SPEEDS[mine])
    direction = level.directions[int(rng.random() * len(level.directions))]
    dx, dy = DIRECTIONS[direction]
    low, high = appearance.radius + 0.01, 1.0 - appearance.radius - 0.01
    position = (_uniform(rng, low, high), _uniform(rng, low, high))
    return Thing(
        appearance.shape,
        appearance.colour,
        appearance.rgb,
        appearance.radius,
        position,
        mine,
        direction,
        (dx * pace, dy * pace),
        appearance.texture,
    )


def _apart(a: Thing, b: Thing, frames: range) -> bool:
    least = (a.radius + b.radius + _GAP) * (a.radius + b.radius + _GAP)
    for frame in frames:
        (ax, ay), (bx, by) = a.centre(frame), b.centre(frame)
        if (ax - bx) * (ax - bx) + (ay - by) * (ay - by) < least:
            return False
    return True


def _sample_background(rng: np.random.Generator, level: Level) -> Background:
    start, end = (BACKGROUNDS[int(rng.random() * len(BACKGROUNDS))] for _ in range(2))
    axis = tuple(DIRECTIONS.values())[int(rng.random() * len(DIRECTIONS))]
    texture = 0.03 if level.textures and rng.random() < 0.5 else 0.0
    return Background(_jitter(rng, start, BACKGROUND_JITTER), _jitter(rng, end, BACKGROUND_JITTER), axis, texture)


def _reflect(x: float, low: float, high: float) -> float:
    """Triangle wave: the position of a point that bounces between `low` and `high`."""
    span = high - low
    t = (x - low) % (2.0 * span)
    return low + (t if t <= span else 2.0 * span - t)


def _uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return low + (high - low) * rng.random()


def _jitter(rng: np.random.Generator, rgb: tuple[float, float, float], width: float) -> tuple[float, float, float]:
    r, g, b = (_uniform(rng, c - width, c + width) for c in rgb)
    return r, g, b


def _choose_weighted(rng: np.random.Generator, shares: dict[Speed, float]) -> Speed:
    draw = rng.random()
    for name, share in shares.items():
        if draw < share:
            return name
        draw -= share
    return name
