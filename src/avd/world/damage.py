"""Ways to spoil a clip by a known amount: how the oracle is calibrated.

Each damage does to rendered clips what a bad model does to generated ones, and its strength is a number. `saturate`,
`slow_down` and `jitter_brightness` work on pixels; `fuse`, `duplicate` and `drop` draw a changed scene again from frame
`start` on.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from avd.world.render import render
from avd.world.scene import Scene, Thing

_LUMA = np.array([0.2126, 0.7152, 0.0722])
"""Rec. 709."""


def saturate(video: np.ndarray, factor: float) -> np.ndarray:
    """Scale every pixel's difference from the grey of its luma: 1 leaves as is, more oversaturates, 0 is grey."""
    grey = (video @ _LUMA)[..., None]
    return _to_uint8(grey + factor * (video - grey))


def slow_down(video: np.ndarray, pace: float) -> np.ndarray:
    """Play the clip at `pace` in [0, 1] of its speed, by the nearest frame: 1 leaves as is, 0 freezes."""
    return video[np.floor(np.arange(len(video)) * pace + 0.5).astype(int)]


def jitter_brightness(video: np.ndarray, amplitude: float, seed: int) -> np.ndarray:
    """Brighten every frame by a random amount of up to `amplitude`, in [0, 1], either way."""
    shift = np.random.default_rng(seed).uniform(-1.0, 1.0, len(video)) * amplitude * 255.0
    return _to_uint8(video + shift[:, None, None, None])


def drop(scene: Scene, size: int, start: int, frames: int, which: int = 0) -> np.ndarray:
    """Draw `scene` with one object missing for `frames` frames."""
    things = tuple(thing for i, thing in enumerate(scene.things) if i != which)
    return _replace_frames(scene, replace(scene, things=things), size, start, frames)


def duplicate(scene: Scene, size: int, start: int, frames: int, which: int = 0) -> np.ndarray:
    """Draw `scene` with a second copy of one object, where there is most room for it, for `frames` frames."""
    copy = replace(scene.things[which], position=_roomiest(scene, scene.things[which]), velocity=(0.0, 0.0))
    return _replace_frames(scene, replace(scene, things=(*scene.things, copy)), size, start, frames)


def fuse(scene: Scene, size: int, start: int, closeness: float) -> np.ndarray:
    """Draw `scene` with its first two objects pulled together from `start` on.

    `closeness` in [0, 1] is the share of the gap between their centres that is closed; at 1 one hides in the other.
    Raises ValueError for a scene of one object or with a moving camera, which is drawn frame by frame here.
    """
    if len(scene.things) < 2 or scene.pan != (0.0, 0.0):
        raise ValueError(f"scene has {len(scene.things)} object(s) and pan {scene.pan}: need two and a camera at rest")
    video = render(scene, size)
    for frame in range(start, scene.frames):
        places = np.array([thing.centre(frame) for thing in scene.things])
        places[:2] += closeness * (places[:2].mean(axis=0) - places[:2])
        things = tuple(
            replace(thing, position=(float(x), float(y)), velocity=(0.0, 0.0))
            for thing, (x, y) in zip(scene.things, places, strict=True)
        )
        # A lone frame is drawn in the light of the first: turn the drift so that this is the light of `frame`.
        light = scene.light * (1.0 - 2.0 * frame / max(scene.frames - 1, 1))
        video[frame] = render(replace(scene, things=things, light=light, frames=1), size)[0]
    return video


def _replace_frames(scene: Scene, changed: Scene, size: int, start: int, frames: int) -> np.ndarray:
    video = render(scene, size)
    video[start : start + frames] = render(changed, size)[start : start + frames]
    return video


def _roomiest(scene: Scene, thing: Thing) -> tuple[float, float]:
    """The place in the frame that stays farthest from all objects over the clip."""
    axis = np.linspace(thing.radius + 0.01, 1.0 - thing.radius - 0.01, 12)
    places = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    taken = np.array([other.centre(frame) for other in scene.things for frame in range(scene.frames)])
    room = np.linalg.norm(places[:, None] - taken, axis=-1).min(axis=1)
    x, y = places[int(np.argmax(room))]
    return float(x), float(y)


def _to_uint8(values: np.ndarray) -> np.ndarray:
    return np.clip(np.floor(values + 0.5), 0, 255).astype(np.uint8)
