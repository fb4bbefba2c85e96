"""A folder of videos that are odd or broken, one of each kind, made with PyAV and Pillow.

`KEPT` and `SKIPPED` name them all: what each shows, or the reason it is skipped for. All show one flat colour, `COLOR`
unless stated otherwise, for nine frames at 8 a second, so that whatever becomes of a file on the way shows in a mean.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

Color = tuple[int, int, int]
Make = Callable[[Path], object]

COLOR: Color = (180, 90, 60)
GREY: Color = (113, 113, 113)  # the luma of COLOR
ON_WHITE: Color = (218, 173, 158)  # COLOR, half transparent, over white
COUNT = 9


def pictures(count: int = COUNT, height: int = 32, width: int = 32, color: Sequence[int] = COLOR) -> np.ndarray:
    return np.broadcast_to(np.array(color, np.uint8), (count, height, width, len(color))).copy()


def encode(
    target: Path | io.BytesIO,
    frames: np.ndarray | None = None,
    *,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    container_format: str | None = None,
    rate: int = 8,
    times: Sequence[int] | None = None,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    degrees: int = 0,
    aspect: Fraction | None = None,
    transfer: int | None = None,
    sound: bool = False,
    streams: int = 1,
) -> None:
    """A video of `frames`, (F, H, W, 3) or with alpha (F, H, W, 4), shown at `times` ticks of 1/`rate` s."""
    frames = pictures() if frames is None else frames
    file: Any = str(target) if isinstance(target, Path) else target
    with av.open(file, "w", format=container_format, options=container_options or {}) as container:
        added = [container.add_stream(codec, rate=rate, options=options or {}) for _ in range(streams)]
        for stream in added:
            stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], pix_fmt
            stream.codec_context.time_base = Fraction(1, rate)
            if aspect is not None:
                stream.codec_context.sample_aspect_ratio = aspect
            if transfer is not None:
                stream.codec_context.color_trc = transfer
            if degrees:
                stream.set_display_rotation(degrees)
        tone = container.add_stream("aac", rate=16000) if sound else None
        for index, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24" if frames.shape[3] == 3 else "rgba")
            frame.pts, frame.time_base = (index if times is None else times[index]), Fraction(1, rate)
            for stream in added:
                container.mux(stream.encode(frame.reformat(format=pix_fmt)))
        for stream in added:
            container.mux(stream.encode(None))
        if tone is not None:
            write_sound(container, tone)


def write_sound(container: Any, stream: Any) -> None:
    frame = av.AudioFrame.from_ndarray(np.zeros((1, 8192), np.float32), format="fltp", layout="mono")
    frame.sample_rate = 16000
    container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def encoded(**how: Any) -> Make:
    frames = how.pop("frames", None)
    return lambda path: encode(path, frames, **how)


def as_bytes(container_format: str = "mp4", frames: np.ndarray | None = None, **how: Any) -> bytes:
    memory = io.BytesIO()
    encode(memory, frames, container_format=container_format, **how)
    return memory.getvalue()


def noise(count: int = COUNT) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (count, 64, 64, 3), dtype=np.uint8)


def cut(share: float, container_format: str = "mp4", frames: np.ndarray | None = None, **how: Any) -> Make:
    def make(path: Path) -> None:
        data = as_bytes(container_format, noise() if frames is None else frames, **how)
        path.write_bytes(data[: int(len(data) * share)])

    return make


def zeroed(start: float, stop: float, **how: Any) -> Make:
    """A file of which a part was never written."""

    def make(path: Path) -> None:
        data = bytearray(as_bytes(**how))
        part = slice(int(len(data) * start), int(len(data) * stop))
        data[part] = bytes(len(data[part]))
        path.write_bytes(data)

    return make


def with_cover(path: Path) -> None:
    """A sound file with a picture of its cover."""
    cover = io.BytesIO()
    Image.new("RGB", (32, 32), COLOR).save(cover, "JPEG")
    with av.open(str(path), "w", format="mp4") as container:
        sound = container.add_stream("aac", rate=16000)
        picture = container.add_stream("mjpeg", rate=1)
        picture.height = picture.width = 32
        picture.pix_fmt = "yuvj420p"
        picture.disposition = av.stream.Disposition.attached_pic
        write_sound(container, sound)
        packet = av.Packet(cover.getvalue())
        packet.stream, packet.pts, packet.dts = picture, 0, 0
        container.mux(packet)


def sound_only(path: Path) -> None:
    with av.open(str(path), "w", format="mp4") as container:
        write_sound(container, container.add_stream("aac", rate=16000))


def gif(path: Path, mode: str = "P", transparency: bool = False) -> None:
    if transparency:
        images = [Image.new("RGBA", (32, 32), (*COLOR, 0 if i % 2 else 255)) for i in range(COUNT)]
        images[0].save(path, "GIF", save_all=True, append_images=images[1:], duration=120, disposal=2)
    else:
        # A pixel that changes keeps Pillow from joining equal frames.
        images = [Image.new("RGB", (32, 32), COLOR) for _ in range(COUNT)]
        for i, image in enumerate(images):
            image.putpixel((i, 0), (0, 0, 0))
        quantized = [image.quantize(8) if mode == "P" else image.convert(mode) for image in images]
        quantized[0].save(path, "GIF", save_all=True, append_images=quantized[1:], duration=120)


def sequence(suffix: str, mode: str = "RGB", numbers: Sequence[int] = range(8, 17), stem: str = "frame_") -> Make:
    def make(path: Path) -> None:
        path.mkdir(parents=True)
        for number in numbers:
            color: Any = (*COLOR, 128) if mode == "RGBA" else COLOR
            image = Image.new(mode if mode == "RGBA" else "RGB", (32, 32), color)
            options = {"lossless": True} if suffix == "webp" else {}
            (image if mode == "RGBA" else image.convert(mode)).save(path / f"{stem}{number}.{suffix}", **options)

    return make


def also(make: Make, change: Make) -> Make:
    """What `make` makes, changed."""

    def both(path: Path) -> None:
        make(path)
        change(path)

    return both


def in_folder(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    encode(path)


def resized_midway(path: Path) -> None:
    """H.264 without a container, whose second half is larger."""
    halves = (as_bytes("h264", pictures(height=side, width=side)) for side in (32, 48))
    path.write_bytes(b"".join(halves))


def odd_metadata(path: Path) -> None:
    """A title that is not UTF-8."""
    memory = io.BytesIO()
    with av.open(memory, "w", format="matroska") as container:
        container.metadata["title"] = "TITLETITLE"
        stream = container.add_stream("libx264", rate=8)
        stream.height = stream.width = 32
        stream.pix_fmt = "yuv420p"
        for pixels in pictures():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    assert b"TITLETITLE" in memory.getvalue()
    path.write_bytes(memory.getvalue().replace(b"TITLETITLE", b"\xff\xfe\xe9TITLE\xc3("))


def text(content: str | bytes) -> Make:
    data = content.encode() if isinstance(content, str) else content
    return lambda path: path.write_bytes(data)


def picture_file(form: str) -> Make:
    return lambda path: Image.new("RGB", (32, 32), COLOR).save(path, form)


def captioned(content: bytes | None, suffix: str = ".txt", make: Make = encode) -> Make:
    """A video with something other than a plain caption beside it; None: with nothing."""

    def both(path: Path) -> None:
        make(path)
        if content is None:
            path.with_suffix(".txt").unlink()
        elif suffix != ".txt":
            path.with_suffix(".txt").unlink()
            path.with_suffix(suffix).write_bytes(content)
        else:
            path.with_suffix(suffix).write_bytes(content)

    return both


def caption_is_a_folder(path: Path) -> None:
    encode(path)
    path.with_suffix(".txt").unlink()
    path.with_suffix(".txt").mkdir()


def gzipped_tar(path: Path) -> None:
    with tarfile.open(path, "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("a.mp4"), io.BytesIO())


KEPT: dict[str, tuple[Make, Color]] = {
    # containers and codecs
    "plain.mp4": (encode, COLOR),
    "quicktime.mov": (encode, COLOR),
    "matroska.mkv": (encode, COLOR),
    "vp9.webm": (encoded(codec="libvpx-vp9"), COLOR),
    "vp8.webm": (encoded(codec="libvpx"), COLOR),
    "mpeg4.avi": (encoded(codec="mpeg4"), COLOR),
    "motion jpeg.avi": (encoded(codec="mjpeg", pix_fmt="yuvj420p"), COLOR),
    "apple.m4v": (encoded(container_format="mp4"), COLOR),
    "fragmented.mp4": (encoded(container_options={"movflags": "frag_keyframe+empty_moov"}), COLOR),
    "fast start.mp4": (encoded(container_options={"movflags": "faststart"}), COLOR),
    "transport stream.mp4": (encoded(container_format="mpegts"), COLOR),
    "sound too.mp4": (encoded(sound=True), COLOR),
    "two streams.mkv": (encoded(streams=2), COLOR),
    "foreign title.mkv": (odd_metadata, COLOR),
    # pixels
    "hevc 10 bit.mp4": (encoded(codec="libx265", pix_fmt="yuv420p10le", options={"x265-params": "log-level=0"}), COLOR),
    "av1 10 bit.mp4": (encoded(codec="libsvtav1", pix_fmt="yuv420p10le", frames=pictures(height=64, width=64)), COLOR),
    "ffv1 10 bit.mkv": (encoded(codec="ffv1", pix_fmt="yuv422p10le"), COLOR),
    "prores.mov": (encoded(codec="prores_ks", pix_fmt="yuv422p10le"), COLOR),
    "rgb.mkv": (encoded(codec="ffv1", pix_fmt="bgr0"), COLOR),
    "grey.mkv": (encoded(codec="ffv1", pix_fmt="gray"), GREY),
    "grey 16 bit.mkv": (encoded(codec="ffv1", pix_fmt="gray16le"), GREY),
    "palette.gif": (gif, COLOR),
    "grey.gif": (lambda path: gif(path, "L"), GREY),
    "transparent.webm": (
        encoded(codec="libvpx-vp9", pix_fmt="yuva420p", frames=pictures(color=(*COLOR, 128))),
        ON_WHITE,
    ),
    "transparent vp8.webm": (
        encoded(
            codec="libvpx", pix_fmt="yuva420p", frames=pictures(color=(*COLOR, 128)), options={"auto-alt-ref": "0"}
        ),
        ON_WHITE,
    ),
    "transparent.mov": (encoded(codec="qtrle", pix_fmt="argb", frames=pictures(color=(*COLOR, 128))), ON_WHITE),
    "transparent.mkv": (encoded(codec="ffv1", pix_fmt="yuva444p", frames=pictures(color=(*COLOR, 128))), ON_WHITE),
    "interlaced.mp4": (encoded(options={"x264-params": "interlaced=1:tff=1"}), COLOR),
    # sizes and shapes
    "odd size.mkv": (encoded(codec="ffv1", pix_fmt="yuv420p", frames=pictures(height=33, width=17)), COLOR),
    "one pixel.mkv": (encoded(codec="ffv1", pix_fmt="bgr0", frames=pictures(height=1, width=1)), COLOR),
    "wide.mp4": (encoded(frames=pictures(height=16, width=160)), COLOR),
    "resized midway.mp4": (resized_midway, COLOR),
    "anamorphic.mp4": (encoded(aspect=Fraction(2)), COLOR),
    "turned 90.mp4": (encoded(degrees=90), COLOR),
    "turned 180.mp4": (encoded(degrees=180), COLOR),
    "turned 270.mp4": (encoded(degrees=270), COLOR),
    # time
    "variable rate.mp4": (encoded(times=[0, 1, 2, 9, 10, 14, 15, 16, 20]), COLOR),
    "begins late.mkv": (encoded(times=range(40, 49)), COLOR),
    "begins early.mp4": (encoded(times=range(-4, 5)), COLOR),
    "b-frames first.mkv": (encoded(options={"bf": "3"}, times=range(-2, 7)), COLOR),
    "slow.mp4": (encoded(rate=2), COLOR),
    "quick.mp4": (encoded(rate=120, frames=pictures(100)), COLOR),
    "five frames.mp4": (encoded(frames=pictures(5)), COLOR),
    # broken, but only after the first clip
    "cut late.mkv": (cut(0.9, "matroska", pictures(60)), COLOR),
    "cut late.mp4": (
        cut(0.8, "mp4", pictures(60), options={"g": "4"}, container_options={"movflags": "frag_keyframe+empty_moov"}),
        COLOR,
    ),
    # names and places
    "name with spaces .mp4": (encode, COLOR),
    "ünïcode 视频 🎬.mp4": (encode, COLOR),
    "two.dots.mp4": (encode, COLOR),
    f"{'long' * 61}.mp4": (encode, COLOR),
    "UPPER.MP4": (encode, COLOR),
    "[red]markup.mp4": (encode, COLOR),
    "quo'te\".mp4": (encode, COLOR),
    "percent%03d.mp4": (encode, COLOR),
    "new\nline.mp4": (encode, COLOR),
    "-dash.mp4": (encode, COLOR),
    "concat:colon.mp4": (encode, COLOR),
    "deep/er/still/down.mp4": (in_folder, COLOR),
    "folder.mp4/within.mp4": (in_folder, COLOR),
    "link.mp4": (lambda path: path.symlink_to("plain.mp4"), COLOR),
    "really a gif.mp4": (gif, COLOR),
    "really an mp4.webm": (encoded(container_format="mp4"), COLOR),
    "really a matroska.gif": (encoded(container_format="matroska"), COLOR),
    # folders of pictures
    "png": (sequence("png"), COLOR),
    "jpeg": (sequence("JPG"), COLOR),
    "webp": (sequence("webp"), COLOR),
    "transparent png": (sequence("png", "RGBA"), ON_WHITE),
    "palette png": (sequence("png", "P"), COLOR),
    "grey png": (sequence("png", "L"), GREY),
    "every tenth": (sequence("png", numbers=range(0, 90, 10), stem=""), COLOR),
    "pictures.mp4": (sequence("png"), COLOR),
    # captions
    "marked caption.mp4": (captioned("\ufeffa caption\r\n".encode()), COLOR),
    "json caption.mp4": (captioned(json.dumps({"id": 1, "caption": "a caption"}).encode(), ".json"), COLOR),
}

SKIPPED: dict[str, tuple[Make, str]] = {
    "zero bytes.mp4": (text(b""), "empty file"),
    "text.mp4": (text("this is a text\n" * 100), "unreadable"),
    "zeros.mp4": (text(bytes(5000)), "unreadable"),
    "random.mp4": (text(np.random.default_rng(0).bytes(5000)), "unreadable"),
    "playlist.mp4": (text("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nplain.mp4\n#EXT-X-ENDLIST\n"), "unreadable"),
    "list of files.mp4": (text("ffconcat version 1.0\nfile plain.mp4\n"), "unreadable"),
    "call.mp4": (text("v=0\no=- 0 0 IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n"), "unreadable"),
    "picture.mp4": (picture_file("PNG"), "unreadable"),
    "photo.mov": (picture_file("JPEG"), "unreadable"),
    "unknown codec.mp4": (lambda path: path.write_bytes(as_bytes().replace(b"avc1", b"zzzz")), "unreadable"),
    "sound.mp4": (sound_only, "no video stream"),
    "sound with cover.m4v": (with_cover, "no video stream"),
    "one frame.mp4": (encoded(frames=pictures(1)), "too short"),
    "four frames.mp4": (encoded(frames=pictures(4)), "too short"),
    "short at this rate.mp4": (encoded(rate=120), "too short"),
    "narrow.mkv": (encoded(codec="ffv1", frames=pictures(height=2, width=640)), "too narrow"),
    "tall.mov": (encoded(codec="qtrle", pix_fmt="rgb24", frames=pictures(height=640, width=2)), "too narrow"),
    "narrow pixels.mp4": (encoded(aspect=Fraction(1, 16)), "too narrow"),
    "hdr.mp4": (encoded(transfer=16), "HDR"),
    "broadcast hdr.mkv": (encoded(transfer=18), "HDR"),
    "cut to a byte.mp4": (cut(0.0001), "unreadable"),
    "cut at a tenth.mp4": (cut(0.1), "unreadable"),
    "cut at half.mp4": (cut(0.5), "unreadable"),
    "cut near its end.mp4": (cut(0.95), "unreadable"),
    "cut early.mkv": (cut(0.3, "matroska"), "too short"),
    "hole.mp4": (zeroed(0.2, 0.5, frames=noise()), "unreadable"),
    "pipe.mp4": (lambda path: os.mkfifo(path), "unreadable"),
    "gone.mp4": (lambda path: path.symlink_to("nowhere.mp4"), "no such file"),
    "loop.mp4": (lambda path: path.symlink_to("loop.mp4"), "unreadable"),
    "too few pictures": (sequence("png", numbers=range(3)), "too short"),
    "two sequences": (
        also(sequence("png"), lambda path: picture_file("PNG")(path / "other_8.png")),
        "ambiguous pictures",
    ),
    "bad picture": (also(sequence("png"), lambda path: text(b"no picture")(path / "frame_9.png")), "unreadable"),
    "playlist as picture": (also(sequence("png"), lambda path: text("#EXTM3U\n")(path / "frame_8.png")), "unreadable"),
    "alone.mp4": (captioned(None), "no caption"),
    "empty caption.mp4": (captioned(b""), "empty caption"),
    "blank caption.mp4": (captioned(b" \n\t\n"), "empty caption"),
    "latin caption.mp4": (captioned("Bälle".encode("latin-1")), "unreadable caption"),
    "binary caption.mp4": (captioned(b"a\0b"), "unreadable caption"),
    "long caption.mp4": (captioned(b"word " * 300_000), "unreadable caption"),
    "folder as caption.mp4": (caption_is_a_folder, "unreadable caption"),
    "broken json.mp4": (captioned(b'{"caption": ', ".json"), "unreadable caption"),
    "json of something else.mp4": (captioned(b'{"width": 3}', ".json"), "unreadable caption"),
    "half a character.mp4": (captioned(b'{"caption": "\\ud83d"}', ".json"), "unreadable caption"),
    "packed.tar.gz": (gzipped_tar, "compressed tar"),
    "no tar.tar": (text("this is a text\n" * 100), "damaged tar"),
}


def make_folder(folder: Path) -> None:
    """Every file of `KEPT` and `SKIPPED` with a caption beside it, and what must not be looked at."""
    folder.mkdir()
    for name, (make, _) in {**KEPT, **SKIPPED}.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        beside(path, is_folder="." not in name or name == "pictures.mp4").write_text("a caption")
        make(path)
    (folder / ".hidden.mp4").write_bytes(b"hidden")
    (folder / "round").symlink_to(folder, target_is_directory=True)
    (folder / "notes.md").write_text("no video")


def beside(path: Path, is_folder: bool = False) -> Path:
    """Where the caption of a video is looked for."""
    return path.with_name(path.name + ".txt") if is_folder else path.with_suffix(".txt")
