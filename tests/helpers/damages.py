"""Damage by a known amount to slow footage, and how every measure of a clip responds.

Footage has 41 frames and a clip is every fourth of them, so slowing it down shows frames that were filmed, not repeated
ones. Each damage is applied in growing strengths to the same clips, and the means over clips are compared.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, fields, replace

import cv2
import numpy as np

from avd.measures.clip import ClipMeasures, measure_clip
from avd.world import World, render
from avd.world.damage import jitter_brightness, saturate
from helpers.real_footage import FRAMES

STRIDE, SIZE = 4, (96, 128)
MEASURES = [field.name for field in fields(ClipMeasures)]

Damage = Callable[[np.ndarray, float], np.ndarray]
Responses = dict[str, np.ndarray]


def clip_of(footage: np.ndarray) -> np.ndarray:
    return footage[::STRIDE]


def freeze(footage: np.ndarray, share: float) -> np.ndarray:
    """Stands still for this share of the clip, at its end."""
    clip = clip_of(footage).copy()
    moving = round((len(clip) - 1) * (1 - share))
    clip[moving:] = clip[moving]
    return clip


def slow(footage: np.ndarray, pace: float) -> np.ndarray:
    stride = round(STRIDE * pace)
    return footage[::stride][: len(clip_of(footage))]


def shake(footage: np.ndarray, pixels: float) -> np.ndarray:
    """Each frame displaced by itself, by up to so many pixels either way."""
    clip, (height, width) = clip_of(footage), footage.shape[1:3]
    shifts = np.random.default_rng(0).uniform(-pixels, pixels, (len(clip), 2)).round()
    frames = [
        cv2.warpAffine(frame, np.array([[1, 0, x], [0, 1, y]]), (width, height), borderMode=cv2.BORDER_REPLICATE)
        for frame, (x, y) in zip(clip, shifts, strict=True)
    ]
    return np.stack(frames)


def blur(footage: np.ndarray, sigma: float) -> np.ndarray:
    return np.stack([cv2.GaussianBlur(frame, (0, 0), sigma) for frame in clip_of(footage)])


DAMAGES: dict[str, tuple[Damage, tuple[float, ...]]] = {
    "saturate": (lambda footage, factor: saturate(clip_of(footage), factor), (1.5, 2.0, 3.0)),
    "freeze": (freeze, (0.3, 0.7, 1.0)),
    "slow": (slow, (0.75, 0.5, 0.25)),
    "jitter": (lambda footage, amplitude: jitter_brightness(clip_of(footage), amplitude, 0), (0.02, 0.05, 0.1)),
    "shake": (shake, (1.0, 2.0, 4.0)),
    "blur": (blur, (1.0, 2.0, 4.0)),
}


def rendered_footage() -> list[np.ndarray]:
    """Moving clips of levels 0 and 2, at a quarter of their speed."""
    footage = []
    for level in (0, 2):
        scenes = [World(level).clip(index, "heldout").scene for index in range(12)]
        for scene in [scene for scene in scenes if scene.things[0].speed != "still"][:4]:
            x, y = scene.pan
            slowed = tuple(
                replace(thing, velocity=(thing.velocity[0] / STRIDE, thing.velocity[1] / STRIDE))
                for thing in scene.things
            )
            scene = replace(scene, things=slowed, pan=(x / STRIDE, y / STRIDE), frames=FRAMES)
            footage.append(render(scene, SIZE[0]))
    return footage


def mean_measures(clips: list[np.ndarray]) -> np.ndarray:
    return np.mean([list(asdict(measure_clip(clip, 8.0)).values()) for clip in clips], axis=0)


def responses(footage: list[np.ndarray]) -> Responses:
    """By damage: the measures' means at no damage and at each strength, (strengths + 1, measures)."""
    unharmed = mean_measures([clip_of(each) for each in footage])
    return {
        name: np.stack([unharmed, *(mean_measures([damage(each, strength) for each in footage]) for strength in grow)])
        for name, (damage, grow) in DAMAGES.items()
    }


def response(responses: Responses, damage: str, measure: str) -> float:
    """How far a measure's mean moves with a damage at full strength."""
    values = responses[damage][:, MEASURES.index(measure)]
    return float(values[-1] - values[0])
