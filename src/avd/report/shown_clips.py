"""Clips as a page shows them: small enough to send by mail, to be played, and as three frames to be printed."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from avd.data import Video

_LONGEST = 400
"""Pixels of the longer side; larger clips are made smaller."""
_SMALL = 128
"""Clips whose longer side is no larger are enlarged by the browser, pixel by pixel."""
_FRAME = 200
"""Pixels of the longer side of a frame of the strip."""
_QUALITY = 82


@dataclass(frozen=True)
class ShownClip:
    """A clip's place among the page's videos, and the strip of its first, middle and last frame as a data URI."""

    number: int
    strip: str
    small: bool


class ShownClips:
    """The clips of a page, each encoded once however often it is shown. One is decoded at a time."""

    def __init__(self) -> None:
        self.videos: list[str] = []
        """MP4 files in base64, by the clips' numbers."""
        self._known: dict[tuple[int, str], ShownClip] = {}

    def show(self, index: int, name: str, read: Callable[[], Video]) -> ShownClip:
        """The clip `name` of set `index`, which `read` decodes."""
        key = (index, name)
        if key not in self._known:
            self._known[key] = self._encode(read())
        return self._known[key]

    def _encode(self, video: Video) -> ShownClip:
        from avd.data import video_bytes  # loads torch, which a page without clips does not need

        frames = np.stack([_fit(frame, _LONGEST) for frame in video.frames])
        self.videos.append(base64.b64encode(video_bytes(frames, video.fps)).decode("ascii"))
        return ShownClip(len(self.videos) - 1, _strip(frames), max(frames.shape[1:3]) <= _SMALL)


def _fit(frame: np.ndarray, longest: int) -> np.ndarray:
    """A uint8 frame (H, W, 3), made smaller where its longer side is above `longest`."""
    height, width = frame.shape[:2]
    scale = longest / max(height, width)
    if scale >= 1:
        return frame
    size = (max(2, round(width * scale)), max(2, round(height * scale)))
    return np.asarray(cv2.resize(frame, size, interpolation=cv2.INTER_AREA))


def _strip(frames: np.ndarray) -> str:
    """First, middle and last frame side by side."""
    picks = [_fit(frames[i], _FRAME) for i in (0, len(frames) // 2, len(frames) - 1)]
    memory = io.BytesIO()
    picture = Image.fromarray(np.concatenate(picks, axis=1))
    if max(picks[0].shape) <= _SMALL:
        picture.save(memory, "PNG", optimize=True)
        return "data:image/png;base64," + base64.b64encode(memory.getvalue()).decode("ascii")
    picture.save(memory, "JPEG", quality=_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(memory.getvalue()).decode("ascii")
