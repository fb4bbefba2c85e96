"""Draw a scene: anti-aliased shapes by signed distance, over a graded background.

Only exactly rounded operations touch the pixels (+, -, *, /, sqrt, min, max, floor), element by element and never in a
reduction, so a scene gives the same bytes on every machine.
"""

from __future__ import annotations

import numpy as np

from avd.types import UserError
from avd.world.scene import Scene, Thing

_SQRT3 = 3.0**0.5


def render(scene: Scene, size: int = 48) -> np.ndarray:
    """Draw all frames of `scene` as uint8 sRGB of shape (frames, size, size, 3)."""
    if size < 16:
        raise UserError(f"size is {size}: a clip needs at least 16 pixels per side")
    axis = (np.arange(size) + 0.5) / size
    x_HW, y_HW = np.meshgrid(axis, axis)
    still_HW3 = _background(scene, x_HW, y_HW) if scene.pan == (0.0, 0.0) else None
    out = np.empty((scene.frames, size, size, 3), dtype=np.uint8)
    for frame in range(scene.frames):
        shift_x, shift_y = scene.pan[0] * frame, scene.pan[1] * frame
        x, y = x_HW + shift_x, y_HW + shift_y
        image = _background(scene, x, y) if still_HW3 is None else still_HW3.copy()
        for thing in scene.things:
            cover_HW, rgb_HW3 = _draw(thing, x_HW, y_HW, frame, size)
            image += cover_HW[..., None] * (rgb_HW3 - image)
        gain = 1.0 + scene.light * (frame / max(scene.frames - 1, 1) - 0.5)
        out[frame] = np.floor(np.clip(image * gain, 0.0, 1.0) * 255.0 + 0.5)
    return out


def coverage(thing: Thing, frame: float, size: int) -> np.ndarray:
    """The share of each pixel that the object covers, (size, size) in [0, 1]; `frame` may lie between two."""
    axis = (np.arange(size) + 0.5) / size
    return _cover(thing, *np.meshgrid(axis, axis), frame, size)[0]


def _background(scene: Scene, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    back = scene.background
    along = np.clip(0.5 + (x - 0.5) * back.axis[0] + (y - 0.5) * back.axis[1], 0.0, 1.0)[..., None]
    image = np.asarray(back.start) * (1.0 - along) + np.asarray(back.end) * along
    if back.texture:
        image = image * (1.0 + back.texture * (_wave(x * 4.0) * _wave(y * 4.0))[..., None])
    return image


def _draw(thing: Thing, x: np.ndarray, y: np.ndarray, frame: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Coverage in [0, 1] of shape (H, W) and colour of shape (H, W, 3) of one object."""
    cover, u, v = _cover(thing, x, y, frame, size)
    rgb = np.broadcast_to(np.asarray(thing.rgb), (*x.shape, 3))
    if thing.texture:
        rgb = rgb * (1.0 + thing.texture * _wave((u + v) * (1.0 / thing.radius))[..., None])
    return cover, rgb


def _cover(
    thing: Thing, x: np.ndarray, y: np.ndarray, frame: float, size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Coverage, and the distances from the object's centre along x and y, each (H, W)."""
    cx, cy = thing.centre(frame)
    u, v = x - cx, y - cy
    return np.clip(0.5 - _distance(thing.shape, u, v, thing.radius) * size, 0.0, 1.0), u, v


def _distance(shape: str, u: np.ndarray, v: np.ndarray, radius: float) -> np.ndarray:
    """Signed distance to the outline (negative inside; exact along edges, a bound at corners)."""
    if shape == "ball":
        return np.sqrt(u * u + v * v) - radius
    if shape == "box":
        return np.maximum(np.abs(u), np.abs(v)) - 0.84 * radius
    if shape == "triangle":  # pointing up, equilateral, inscribed in the circle, lowered to centre its mass in the box
        w = v - 0.12 * radius
        return np.maximum(w - 0.62 * radius, 0.5 * (_SQRT3 * np.abs(u) - w) - 0.56 * radius)
    if shape == "diamond":
        return (np.abs(u) + np.abs(v) - 1.15 * radius) * 0.5**0.5
    if shape == "ring":
        return np.abs(np.sqrt(u * u + v * v) - 0.74 * radius) - 0.26 * radius
    raise ValueError(f"unknown shape {shape!r}")


def _wave(t: np.ndarray) -> np.ndarray:
    """Triangle wave of period 1 in [-1, 1]."""
    return 4.0 * np.abs(t - np.floor(t + 0.5)) - 1.0
