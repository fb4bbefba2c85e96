"""Video files to arrays and back.

Files may come in any format FFmpeg reads, at any size, shape of pixel, rotation or (variable) frame rate. What is read
is uint8 sRGB of shape (F, H, W, 3) at a constant rate. What is written is H.264 in MP4 that browsers play.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc, Interpolation

from avd.data.files import write_atomically
from avd.types import UserError

# Accurate rounding and full chroma keep flat colours within a level of the truth; bit-exact is the same on every CPU.
_SWSCALE = (
    Interpolation.BICUBIC
    | Interpolation.ACCURATE_RND
    | Interpolation.FULL_CHR_H_INT
    | Interpolation.FULL_CHR_H_INP
    | Interpolation.BITEXACT
)
_UNSPECIFIED = 2  # AVCOL_SPC_UNSPECIFIED


@dataclass(frozen=True)
class Video:
    """Frames, uint8 (F, H, W, 3), and their constant rate per second."""

    frames: np.ndarray
    fps: float


class VideoError(UserError):
    """A video file that cannot be used. `reason` is a word or two, the same for all files with the same trouble."""

    def __init__(self, path: Path, reason: str, detail: str) -> None:
        super().__init__(f"{path}: {detail}")
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True)
class _TimedFrame:
    """A decoded frame, shown from `start` to `end`, in seconds from the first frame."""

    start: Fraction
    end: Fraction
    frame: av.VideoFrame


def read_video(
    path: str | Path, *, frames: int | None = None, fps: float | None = None, size: tuple[int, int] | None = None
) -> Video:
    """Read a video file, upright and with square pixels.

    `fps`: at each tick of this rate take the frame whose presentation time is nearest; None keeps every frame as it is
    stored and reports the average rate. `frames`: take so many from the start; None takes all. `size`: (height, width)
    to resize to, covering it with the aspect ratio kept, and to crop to about the centre; None keeps the size.

    Raises `VideoError`, a `UserError` of one line, if the file is missing, empty, damaged, has no video in it, or is
    shorter than `frames`.
    """
    path = Path(path)
    try:
        if not path.is_file():
            raise VideoError(path, "no such file", "no such file")
        if path.stat().st_size == 0:
            raise VideoError(path, "empty file", "the file is empty (0 bytes)")
        # The whitelist stops playlists, disguised as videos, from fetching other addresses.
        with av.open(f"file:{path}", options={"protocol_whitelist": "file"}) as container:
            if not container.streams.video:
                raise VideoError(path, "no video stream", "there is no video stream in this file")
            stream = container.streams.video[0]
            rate = stream.average_rate or stream.guessed_rate
            if not rate:
                raise VideoError(path, "no frames", "the video stream holds no frames")
            timed = _timed(path, container.decode(stream), rate)
            chosen = (each.frame for each in timed) if fps is None else _resample(timed, _rational(fps))
            pictures = _pictures(islice(chosen, frames), size, stream.sample_aspect_ratio or Fraction(1))
    except (av.FFmpegError, OSError) as error:
        raise VideoError(path, "unreadable", f"cannot be decoded: {error.strerror}") from error

    fps = fps or float(rate)
    if not pictures:
        raise VideoError(path, "no frames", "the video stream holds no frames")
    if frames is not None and len(pictures) < frames:
        raise VideoError(path, "too short", f"holds {len(pictures)} frames at {fps:g} fps, {frames} are needed")
    return Video(np.stack(pictures), fps)


def write_video(path: str | Path, frames: np.ndarray, fps: float) -> None:
    """Write `frames`, uint8 (F, H, W, 3), as an MP4 file, whole or not at all; see `video_bytes`."""
    write_atomically(Path(path), video_bytes(frames, fps))


def video_bytes(frames: np.ndarray, fps: float, *, scale: int = 1) -> bytes:
    """`frames`, uint8 (F, H, W, 3), as an MP4 file in memory: H.264 4:2:0, BT.709 colours, tagged as such.

    4:2:0 is what every browser plays. It halves the resolution of colour; a `scale` of 2 or more, which repeats every
    pixel in both directions, keeps colour sharp in small clips. An odd height or width is padded by repeating the last
    row or column. The same frames give the same bytes.

    Raises `UserError` for another type or shape, no frames, an `fps` outside 0.01 to 1000, or a `scale` below 1.
    """
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or frames.size == 0:
        raise UserError(f"video frames are {frames.dtype} {frames.shape}: uint8 (F, H, W, 3) is needed, none of it 0")
    if scale < 1:
        raise UserError(f"video scale is {scale}: a whole number of at least 1 is needed")
    frames = frames.repeat(scale, axis=1).repeat(scale, axis=2)
    frames = np.pad(frames, ((0, 0), (0, frames.shape[1] % 2), (0, frames.shape[2] % 2), (0, 0)), mode="edge")

    memory = io.BytesIO()
    rate = _rational(fps)
    with av.open(memory, "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        # More than one thread would let the number of CPU cores into the bytes.
        stream = container.add_stream("libx264", rate=rate, options={"crf": "12", "threads": "1"})
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
                interpolation=_SWSCALE,
                threads=1,
            )
            frame.pts, frame.duration, frame.time_base = index, 1, 1 / rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return memory.getvalue()


def _rational(fps: float) -> Fraction:
    if not 0.01 <= fps <= 1000:
        raise UserError(f"fps is {fps}: a rate from 0.01 to 1000 is needed")
    return Fraction(fps).limit_denominator(1001)  # exact for 30000/1001 and its like


def _timed(path: Path, frames: Iterable[av.VideoFrame], rate: Fraction) -> Iterator[_TimedFrame]:
    """Decoded frames with their times. `rate` serves files that store no times or durations."""
    origin: Fraction | None = None
    for index, frame in enumerate(frames):
        if frame.is_corrupt:
            raise VideoError(path, "damaged", f"frame {index} is damaged")
        tick = frame.time_base or Fraction(0)
        time = index / rate if frame.pts is None else frame.pts * tick
        origin = time if origin is None else origin
        yield _TimedFrame(time - origin, time - origin + (frame.duration * tick or 1 / rate), frame)


def _resample(timed: Iterable[_TimedFrame], rate: Fraction) -> Iterator[av.VideoFrame]:
    """For each tick of `rate`, from the first frame's start to the last one's end, the frame that starts nearest.

    Of two frames equally near, the earlier. Rational times make the choice exact.
    """
    tick = Fraction(0)
    shown: _TimedFrame | None = None
    for following in timed:
        while shown is not None and tick <= (shown.start + following.start) / 2:
            yield shown.frame
            tick += 1 / rate
        shown = following
    while shown is not None and tick < shown.end:
        yield shown.frame
        tick += 1 / rate


def _pictures(
    frames: Iterable[av.VideoFrame], size: tuple[int, int] | None, pixel_aspect: Fraction
) -> list[np.ndarray]:
    """RGB pictures of `size`, or else of the first one's own size, should later ones differ."""
    pictures: list[np.ndarray] = []
    for frame in frames:
        pictures.append(_picture(frame, size, pixel_aspect))
        size = size or (pictures[0].shape[0], pictures[0].shape[1])
    return pictures


def _picture(frame: av.VideoFrame, size: tuple[int, int] | None, pixel_aspect: Fraction) -> np.ndarray:
    """One frame as upright RGB (H, W, 3) with square pixels, covering `size` and cropped to it about the centre."""
    quarter_turns = round(frame.rotation / 90) % 4  # counter-clockwise
    true_width = float(frame.width * pixel_aspect)
    stored_size = size or (frame.height, round(true_width))
    if size is not None and quarter_turns % 2:
        stored_size = (size[1], size[0])
    height, width = stored_size
    scale = max(height / frame.height, width / true_width)
    scaled_height = max(height, round(frame.height * scale))
    scaled_width = max(width, round(true_width * scale))
    # Files that name no colour matrix follow the custom of players: BT.709 if high definition, else BT.601.
    unnamed_hd = frame.colorspace == _UNSPECIFIED and frame.height >= 720
    pixels = frame.to_ndarray(
        format="rgb24",
        width=scaled_width,
        height=scaled_height,
        src_colorspace=Colorspace.ITU709 if unnamed_hd else None,
        interpolation=_SWSCALE,
        threads=1,
    )
    top, left = (scaled_height - height) // 2, (scaled_width - width) // 2
    return np.rot90(pixels[top : top + height, left : left + width], quarter_turns)
