"""Arrays to video files that browsers play: H.264 in MP4, VP9 in WebM."""

from __future__ import annotations

import io
from fractions import Fraction
from pathlib import Path
from typing import Literal

import av
import numpy as np
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc

from avd.data.video.frames import SWSCALE
from avd.files import write_atomically
from avd.types import UserError

Container = Literal["mp4", "webm"]

# More than one thread would let the number of CPU cores into the bytes. libx264's macroblock tree lets in what happens
# to lie in memory, so that the same frames give one of several files.
_CODECS: dict[Container, tuple[str, dict[str, str]]] = {
    "mp4": ("libx264", {"crf": "12", "threads": "1", "mbtree": "0"}),
    "webm": ("libvpx-vp9", {"crf": "18", "b": "0", "threads": "1", "deadline": "good", "cpu-used": "4"}),
}


def write_video(path: str | Path, frames: np.ndarray, fps: float) -> None:
    """Write `frames`, uint8 (F, H, W, 3), as an MP4 file, atomically; see `video_bytes`."""
    write_atomically(Path(path), video_bytes(frames, fps))


def video_bytes(
    frames: np.ndarray, fps: float, *, scale: int = 1, container: Container = "mp4", comment: str = ""
) -> bytes:
    """`frames`, uint8 (F, H, W, 3), as a video file in memory: 4:2:0, BT.709 colours, tagged as such.

    4:2:0 is what every browser plays. It halves the resolution of colour; a `scale` of 2 or more, which repeats every
    pixel in both directions, keeps colour sharp in small clips. An odd height or width is padded by repeating the last
    row or column. `comment` is the file's metadata of that name. The same frames give the same bytes.

    Raises `UserError` for another type or shape, no frames, an `fps` outside 0.01 to 1000, or a `scale` below 1.
    """
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or frames.size == 0:
        raise UserError(f"video frames are {frames.dtype} {frames.shape}: uint8 (F, H, W, 3) is needed, none of it 0")
    if scale < 1:
        raise UserError(f"video scale is {scale}: a whole number of at least 1 is needed")
    frames = frames.repeat(scale, axis=1).repeat(scale, axis=2)
    frames = np.pad(frames, ((0, 0), (0, frames.shape[1] % 2), (0, frames.shape[2] % 2), (0, 0)), mode="edge")

    memory = io.BytesIO()
    rate = exact_rate(fps)
    codec, options = _CODECS[container]
    with av.open(memory, "w", format=container, options={"fflags": "+bitexact"}) as file:
        if comment:
            file.metadata["comment"] = comment
        stream = file.add_stream(codec, rate=rate, options=options)
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        context.colorspace = Colorspace.ITU709
        context.color_primaries = ColorPrimaries.BT709
        context.color_trc = ColorTrc.BT709
        context.color_range = ColorRange.MPEG
        for index, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24").reformat(
                format="yuv420p",
                dst_colorspace=Colorspace.ITU709,
                dst_color_range=ColorRange.MPEG,
                interpolation=SWSCALE,
                threads=1,
            )
            frame.pts, frame.duration, frame.time_base = index, 1, 1 / rate
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return memory.getvalue()


def exact_rate(fps: float) -> Fraction:
    """A rate per second as a fraction. Raises `UserError` outside 0.01 to 1000."""
    if not 0.01 <= fps <= 1000:
        raise UserError(f"fps is {fps}: a rate from 0.01 to 1000 is needed")
    return Fraction(fps).limit_denominator(1001)  # exact for 30000/1001 and its like
