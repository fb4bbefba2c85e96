"""Read a clip's pixels: which objects are where, before an opinion is formed of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from avd.world.oracle.segment import find_regions, fit_background
from avd.world.oracle.tracks import Track, follow
from avd.world.scene import LEVELS


@dataclass(frozen=True)
class Reading:
    """What is seen in a clip of F frames."""

    tracks: tuple[Track, ...]
    """Everything that stands out from the background in any frame, in the order of appearance."""
    background: np.ndarray
    """Fitted background colour on a 3 x 3 grid of places, sRGB in [0, 1], (F, 9, 3)."""
    level: int
    """Level of the world whose colours, shapes and directions the reading is made in terms of."""

    @property
    def frames(self) -> int:
        return len(self.background)

    @property
    def objects(self) -> tuple[Track, ...]:
        """Tracks seen in at least half the frames. Lesser ones are fragments: they count against preservation only."""
        return tuple(track for track in self.tracks if 2 * track.present.sum() >= self.frames)

    @property
    def main_object(self) -> Track | None:
        """The fastest object."""
        return max(self.objects, key=lambda track: track.motion.speed, default=None)


def read_clip(video: np.ndarray, level: int) -> Reading:
    """Read `video`, uint8 sRGB (F, H, W, 3), in terms of world `level`.

    Raises ValueError for an array of another kind, a clip under 3 frames or 16 pixels, or an unknown level.
    """
    if video.dtype != np.uint8 or video.ndim != 4 or video.shape[-1] != 3:
        raise ValueError(f"video is {video.dtype} of shape {video.shape}: give uint8 (frames, height, width, 3)")
    if video.shape[0] < 3 or min(video.shape[1:3]) < 16:
        raise ValueError(f"video has shape {video.shape}: give at least 3 frames of 16 pixels per side")
    if not 0 <= level < len(LEVELS):
        raise ValueError(f"world level is {level}: choose 0 to {len(LEVELS) - 1}")
    pixels = video.astype(np.float32) / 255.0
    background = fit_background(pixels)
    regions = find_regions(pixels, background, LEVELS[level].colours)
    tracks = follow(regions, len(video), LEVELS[level])
    return Reading(tracks, _grid(background), level)


def _grid(background: np.ndarray) -> np.ndarray:
    frames, height, width, _ = background.shape
    rows, columns = ([side // 6, side // 2, side - 1 - side // 6] for side in (height, width))
    return background[:, rows][:, :, columns].reshape(frames, 9, 3)
