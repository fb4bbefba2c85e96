"""Video files to arrays.

Files may come in any common format, at any size, shape of pixel, rotation or (variable) frame rate; folders of numbered
pictures are videos too. What is read is uint8 sRGB of shape (F, H, W, 3) at a constant rate.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.stream import Disposition

from avd.data.video.checks import Checks, examine
from avd.data.video.frames import deinterlaced, is_hdr, kept_share, picture, shorter_side
from avd.data.video.images import numbered_pictures
from avd.data.video.mp4 import exact_rate
from avd.data.video.sources import VideoSource
from avd.types import UserError

# FFmpeg tells formats by content, whatever a file is called. Only containers may be opened, and no protocol: a playlist
# disguised as a video then fetches nothing from anywhere.
_CONTAINERS = "apng,asf,avi,flv,gif,h264,hevc,ivf,matroska,mov,mpeg,mpegts,mpegvideo,mxf,nut,ogg,yuv4mpegpipe"
_PICTURES = "apng,jpeg_pipe,png_pipe,webp_pipe"
# FFmpeg's own decoders of these leave out the transparency that WebM keeps beside the picture.
_DECODERS_WITH_ALPHA = {"vp8": "libvpx", "vp9": "libvpx-vp9"}


@dataclass(frozen=True)
class Video:
    """Frames, uint8 (F, H, W, 3), and their constant rate per second."""

    frames: np.ndarray
    fps: float


@dataclass(frozen=True)
class ReadOptions:
    """How clips are cut from videos: up to `windows` of `frames` frames at `fps`, of `size` (height, width) pixels.

    They follow one another from `skip_start` seconds on, or, if `spread`, stand in the middle of equal parts of what is
    left of the video. `picture_fps` is the rate of a folder of pictures; None is `fps`. `checks` is what is asked.

    Raises `UserError` for a rate, or a time to skip, that makes no sense.
    """

    frames: int
    fps: float
    size: tuple[int, int]
    windows: int
    picture_fps: float | None = None
    skip_start: float = 0.0
    spread: bool = False
    checks: Checks = field(default_factory=Checks)

    def __post_init__(self) -> None:
        for rate in (self.fps, self.rate_of_pictures):
            exact_rate(rate)  # now, and not at the first file
        if not 0 <= self.skip_start < math.inf:
            raise UserError(f"{self.skip_start:g} s to skip at the start of a video: it must be a number, at least 0")

    @property
    def rate_of_pictures(self) -> float:
        return float(self.fps if self.picture_fps is None else self.picture_fps)

    @property
    def header(self) -> dict[str, Any]:
        """What decides which clips a file gives, beside their size: what a cache remembers."""
        return {
            "windows": self.windows,
            "picture_fps": self.rate_of_pictures,
            "skip_start": self.skip_start,
            "spread": self.spread,
            "checks": asdict(self.checks),
        }


@dataclass(frozen=True)
class Window:
    """Consecutive frames, uint8 (F, H, W, 3), that begin `start` seconds into a video of `source_seconds` in all.

    `repeated` of the frames repeat the one before.
    """

    start: float
    frames: np.ndarray
    source_seconds: float
    repeated: int = 0


@dataclass(frozen=True)
class RefusedWindow:
    """A window that begins `start` seconds into a video and is left out; `reason` as in `VideoError`."""

    start: float
    reason: str
    detail: str


class VideoError(UserError):
    """A video that cannot be used. `reason` is a word or two, the same for all files with the same trouble."""

    def __init__(self, path: str | Path, reason: str, detail: str) -> None:
        super().__init__(f"{path}: {detail}")
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True)
class _TimedFrame:
    """A decoded frame, shown from `start` to `end`, in seconds from the first frame."""

    start: Fraction
    end: Fraction
    frame: av.VideoFrame


@dataclass(frozen=True)
class _Footage:
    """An open video: its frames in time, their average rate, the shape of a pixel, its length in seconds or 0."""

    timed: Iterator[_TimedFrame]
    rate: Fraction
    pixel_aspect: Fraction = Fraction(1)
    seconds: float = 0.0


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
    source = VideoSource(str(path), Path(path))
    rate = None if fps is None else exact_rate(fps)
    with _opened(source, rate) as footage:
        chosen = (each.frame for each in footage.timed) if rate is None else _resample(footage.timed, rate)
        pictures = list(_pictures(source, islice(chosen, frames), size, footage.pixel_aspect, Checks()))
        fps = fps or float(footage.rate)
        _check_length(source, len(pictures), frames or 1, fps)
        return Video(np.stack(pictures), fps)


def read_windows(
    source: VideoSource, options: ReadOptions, after: float | None = None
) -> Iterator[Window | RefusedWindow]:
    """The windows that `options` ask for, in order, those that start `after` so many seconds if it is given.

    Frames are read as `read_video` reads them, and a window that is not complete is dropped. One window is in memory at
    a time. A video that does not say how long it is cannot be spread over: its windows follow one another.

    Raises `VideoError` as `read_video` does, also between windows where the video turns out to be damaged, and for a
    file that is not what the checks ask.
    """
    rate, count, checks = exact_rate(options.fps), options.frames, options.checks
    with _opened(source, exact_rate(options.rate_of_pictures)) as footage:
        if footage.rate < checks.min_fps:
            detail = f"has {float(footage.rate):g} frames per second, {checks.min_fps:g} are asked"
            raise VideoError(source.name, "low frame rate", detail)
        chosen, position = _resample(footage.timed, rate), 0
        for begin in _window_starts(options, rate, footage.seconds):
            start = float(begin / rate)
            if after is not None and start <= after:
                continue
            frames = islice(chosen, begin - position, begin - position + count)
            window = list(_pictures(source, frames, options.size, footage.pixel_aspect, checks))
            position = begin + count
            if after is None and len(window) < count:
                skipped = f" from {start:g} s on" if begin else ""
                _check_length(source, len(window), count, options.fps, skipped)
            if len(window) < count:
                return
            after = start
            stacked = np.stack(window)
            found = examine(stacked, options.fps, checks)
            if found.reason is not None:
                yield RefusedWindow(start, found.reason, found.detail)
            else:
                yield Window(start, stacked, footage.seconds or float(position / rate), found.repeated)


def _window_starts(options: ReadOptions, rate: Fraction, seconds: float) -> list[int]:
    """The ticks of `rate` at which windows start in a video of `seconds`, 0 if that is not known."""
    first = math.ceil(Fraction(str(options.skip_start)) * rate)
    left = math.floor(Fraction(seconds) * rate) - first
    fitting = min(options.windows, left // options.frames)
    if not options.spread or fitting < 1:
        return [first + number * options.frames for number in range(options.windows)]
    # In the middle of each of `fitting` equal parts; the parts are no shorter than a window, so none overlap.
    return [first + ((2 * k + 1) * left - fitting * options.frames) // (2 * fitting) for k in range(fitting)]


def _check_length(source: VideoSource, found: int, needed: int, fps: float, where: str = "") -> None:
    if found == 0 and not where:
        raise VideoError(source.name, "no frames", "the video stream holds no frames")
    if found < needed:
        raise VideoError(source.name, "too short", f"holds {found} frames at {fps:g} fps{where}, {needed} are needed")


@contextmanager
def _opened(source: VideoSource, picture_rate: Fraction | None) -> Iterator[_Footage]:
    """A video to read from inside the block. Whatever goes wrong with it there is a `VideoError`."""
    try:
        if source.is_folder:
            yield _pictures_in_time(source, picture_rate or Fraction(1))
            return
        with source.open() as file:
            if not file.read(1):
                raise VideoError(source.name, "empty file", "the file is empty (0 bytes)")
            file.seek(0)
            with _container(file, _CONTAINERS) as container:
                yield _footage(source, container)
    except VideoError:
        raise
    except (FileNotFoundError, NotADirectoryError):
        raise VideoError(source.name, "no such file", "no such file") from None
    except (av.FFmpegError, OSError, ValueError, MemoryError) as error:
        cause = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise VideoError(source.name, "unreadable", f"cannot be decoded: {cause}") from error


def _container(file: Any, formats: str) -> Any:
    options = {"protocol_whitelist": "none", "format_whitelist": formats}
    return av.open(file, options=options, metadata_errors="replace")


def _footage(source: VideoSource, container: Any) -> _Footage:
    streams = (stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic)
    stream = next(streams, None)
    if stream is None:
        raise VideoError(source.name, "no video stream", "there is no video stream in this file")
    if stream.codec_context is None:
        raise VideoError(source.name, "unreadable", "cannot be decoded: there is no decoder for this kind of video")
    rate = stream.average_rate or stream.guessed_rate
    if not rate:
        raise VideoError(source.name, "no frames", "the video stream holds no frames")
    frames = deinterlaced(_intact(source, _decoded(container, stream)))
    if stream.duration is not None:
        seconds = float(stream.duration * stream.time_base)
    else:
        seconds = (container.duration or 0) / av.time_base
    return _Footage(_in_time(frames, rate), rate, stream.sample_aspect_ratio or Fraction(1), seconds)


def _decoded(container: Any, stream: Any) -> Iterator[av.VideoFrame]:
    transparent = any(key.lower() == "alpha_mode" and value == "1" for key, value in stream.metadata.items())
    name = _DECODERS_WITH_ALPHA.get(stream.codec_context.name) if transparent else None
    if name is None:
        yield from container.decode(stream)
        return
    decoder: Any = av.CodecContext.create(name, "r")
    for packet in container.demux(stream):
        yield from decoder.decode(packet)


def _intact(source: VideoSource, frames: Iterable[av.VideoFrame]) -> Iterator[av.VideoFrame]:
    for index, frame in enumerate(frames):
        if frame.is_corrupt:
            raise VideoError(source.name, "damaged", f"frame {index} is damaged")
        if is_hdr(frame):
            raise VideoError(source.name, "HDR", "its levels are those of high dynamic range: convert it to SDR")
        yield frame


def _in_time(frames: Iterable[av.VideoFrame], rate: Fraction) -> Iterator[_TimedFrame]:
    """Decoded frames with their times; one that is not later than those before is dropped.

    `rate` serves files that store no times or durations.
    """
    origin: Fraction | None = None
    latest = Fraction(-1)
    for index, frame in enumerate(frames):
        tick = frame.time_base or Fraction(0)
        time = index / rate if frame.pts is None else frame.pts * tick
        origin = time if origin is None else origin
        start = time - origin
        if start > latest:
            latest = start
            yield _TimedFrame(start, start + (frame.duration * tick or 1 / rate), frame)


def _pictures_in_time(source: VideoSource, rate: Fraction) -> _Footage:
    try:
        names = numbered_pictures(os.listdir(source.path))
    except ValueError as error:
        raise VideoError(source.name, "ambiguous pictures", str(error)) from error
    if not names:
        raise VideoError(source.name, "no pictures", "a folder, and no numbered pictures in it")

    def timed() -> Iterator[_TimedFrame]:
        for index, name in enumerate(names):
            try:
                with (source.path / name).open("rb") as file, _container(file, _PICTURES) as container:
                    frame = next(container.decode(video=0), None)
            except (av.FFmpegError, OSError) as error:
                raise VideoError(source.name, "unreadable", f"{name} cannot be decoded: {error.strerror}") from error
            if frame is None:
                raise VideoError(source.name, "unreadable", f"{name} holds no picture")
            yield _TimedFrame(index / rate, (index + 1) / rate, frame)

    return _Footage(timed(), rate, seconds=len(names) / float(rate))


def _resample(timed: Iterable[_TimedFrame], rate: Fraction) -> Iterator[av.VideoFrame]:
    """For each tick of `rate`, from the first frame's start to the last one's end, the frame that starts nearest.

    The earlier of two frames that are equally near. Rational times make the choice exact.
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
    source: VideoSource,
    frames: Iterable[av.VideoFrame],
    size: tuple[int, int] | None,
    pixel_aspect: Fraction,
    checks: Checks,
) -> Iterator[np.ndarray]:
    """RGB pictures of `size`, or else of the first one's own size, should later ones differ."""
    last: av.VideoFrame | None = None
    pixels: np.ndarray = np.empty(0)
    for frame in frames:
        if frame is not last:
            if size is not None:
                _check_picture(source, frame, size, pixel_aspect, checks)
            pixels = picture(frame, size, pixel_aspect)
            size = size or pixels.shape[:2]
            last = frame
        yield pixels


def _check_picture(
    source: VideoSource, frame: av.VideoFrame, size: tuple[int, int], pixel_aspect: Fraction, checks: Checks
) -> None:
    """Raise `VideoError` for a picture that is smaller than asked, or of which the crop leaves too little."""
    shape, share = f"{frame.width} x {frame.height}", kept_share(frame, size, pixel_aspect)
    if shorter_side(frame, pixel_aspect) < checks.min_size:
        raise VideoError(source.name, "too small", f"{shape} pixels, the shorter side must have {checks.min_size}")
    if share < checks.min_kept:
        detail = f"a crop would leave {share:.0%} of {shape} pixels, at least {checks.min_kept:.4g} is needed"
        raise VideoError(source.name, "too narrow", detail)
