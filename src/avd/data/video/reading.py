"""Video files to arrays.

Files may come in any common format, at any size, shape of pixel, rotation or (variable) frame rate; folders of numbered
pictures are videos too. What is read is uint8 sRGB of shape (F, H, W, 3) at a constant rate.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.stream import Disposition

from avd.data.video.frames import deinterlaced, is_hdr, kept_share, picture
from avd.data.video.images import numbered_pictures
from avd.data.video.mp4 import exact_rate
from avd.data.video.sources import VideoSource
from avd.types import UserError

MIN_KEPT_SHARE = 1 / 8
"""Least share of a picture left by cropping; below it a caption no longer says what is left."""

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
class Window:
    """Consecutive frames, uint8 (F, H, W, 3), that begin `start` seconds into a video of `source_seconds` in all."""

    start: float
    frames: np.ndarray
    source_seconds: float


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
        pictures = list(_pictures(source, islice(chosen, frames), size, footage.pixel_aspect))
        fps = fps or float(footage.rate)
        _check_length(source, len(pictures), frames or 1, fps)
        return Video(np.stack(pictures), fps)


def read_windows(
    source: VideoSource,
    *,
    frames: int,
    fps: float,
    size: tuple[int, int],
    windows: int,
    first: int = 0,
    picture_fps: float | None = None,
) -> Iterator[Window]:
    """The windows of `frames` frames that follow one another in a video, from number `first` up to `windows`.

    Frames are read as `read_video` reads them, and what is left after the last full window is dropped. One window is
    in memory at a time. `picture_fps` is the rate of a folder of pictures; None is `fps`.

    Raises `VideoError` as `read_video` does, also between windows where the video turns out to be damaged.
    """
    rate = exact_rate(fps)
    with _opened(source, rate if picture_fps is None else exact_rate(picture_fps)) as footage:
        chosen = islice(_resample(footage.timed, rate), first * frames, windows * frames)
        pictures = _pictures(source, chosen, size, footage.pixel_aspect)
        for number in range(first, windows):
            window = list(islice(pictures, frames))
            if number == 0:
                _check_length(source, len(window), frames, fps)
            if len(window) < frames:
                return
            start, end = (float(count * frames / rate) for count in (number, number + 1))
            yield Window(start, np.stack(window), footage.seconds or end)


def _check_length(source: VideoSource, found: int, needed: int, fps: float) -> None:
    if found == 0:
        raise VideoError(source.name, "no frames", "the video stream holds no frames")
    if found < needed:
        raise VideoError(source.name, "too short", f"holds {found} frames at {fps:g} fps, {needed} are needed")


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
    source: VideoSource, frames: Iterable[av.VideoFrame], size: tuple[int, int] | None, pixel_aspect: Fraction
) -> Iterator[np.ndarray]:
    """RGB pictures of `size`, or else of the first one's own size, should later ones differ."""
    last: av.VideoFrame | None = None
    pixels: np.ndarray = np.empty(0)
    for frame in frames:
        if frame is not last:
            if size is not None and kept_share(frame, size, pixel_aspect) < MIN_KEPT_SHARE:
                shape = f"{frame.width} x {frame.height}"
                raise VideoError(source.name, "too narrow", f"a crop would leave less than an eighth of {shape} pixels")
            pixels = picture(frame, size, pixel_aspect)
            size = size or pixels.shape[:2]
            last = frame
        yield pixels
