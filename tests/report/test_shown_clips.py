"""Clips on a page: each encoded once, no larger than needed, with a strip of three frames."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

from avd.data import Video
from avd.report.shown_clips import ShownClips


def video(height: int, width: int, frames: int = 9) -> Video:
    levels = np.linspace(20, 220, frames).astype(np.uint8)
    return Video(np.broadcast_to(levels[:, None, None, None], (frames, height, width, 3)).copy(), 8.0)


def picture(uri: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition("base64,")[2]))))


def test_a_clip_is_read_and_encoded_once() -> None:
    clips, read = ShownClips(), []

    def reading() -> Video:
        read.append(1)
        return video(16, 24)

    first, again, other = (clips.show(*each, reading) for each in ((0, "a"), (0, "a"), (1, "a")))
    assert first is again and other.number == 1
    assert len(read) == len(clips.videos) == 2
    assert b"ftyp" in base64.b64decode(clips.videos[0])[:12]


def test_large_clips_are_made_smaller_and_small_ones_are_not() -> None:
    clips = ShownClips()
    large, small = clips.show(0, "large", lambda: video(480, 832)), clips.show(0, "small", lambda: video(48, 48))
    assert (large.small, small.small) == (False, True)
    assert picture(large.strip).shape == (116, 600, 3) and picture(small.strip).shape == (48, 144, 3)


def test_the_strip_is_the_first_the_middle_and_the_last_frame() -> None:
    strip = picture(ShownClips().show(0, "a", lambda: video(16, 24)).strip)
    assert [int(strip[8, 24 * i + 12].mean()) for i in range(3)] == [20, 120, 220]
