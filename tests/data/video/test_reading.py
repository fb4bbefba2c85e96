"""Video files: round trips, resampling by time, rotation, cropping, and files that are not what they say."""

from __future__ import annotations

import io
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.reformatter import ColorRange, Colorspace
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from avd.data import VideoError, read_video, video_bytes, write_video
from avd.data.video.reading import ReadOptions, Window, read_windows
from avd.data.video.sources import VideoSource
from avd.types import UserError
from avd.world import World
from helpers.footage import numbers, shades
from helpers.odd_videos import encode


def write_timed(path: Path, frames: np.ndarray, times: list[int], time_base: Fraction) -> None:
    """A video with a presentation time for each frame, the last one shown for one tick."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=1 / time_base, options={"crf": "4", "threads": "1"})
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv444p"
        for pixels, time in zip(frames, times, strict=True):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.duration, frame.time_base = time, 1, time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


@given(
    color=st.tuples(*[st.integers(30, 225)] * 3),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    fps=st.sampled_from([8.0, 16.0, 24000 / 1001, 12.5]),
)
@settings(max_examples=25, deadline=None)
def test_flat_colors_survive_a_round_trip(
    tmp_path_factory: pytest.TempPathFactory, color: tuple[int, ...], size: tuple[int, int], fps: float
) -> None:
    path = tmp_path_factory.mktemp("video") / "flat.mp4"
    frames = np.broadcast_to(np.array(color, dtype=np.uint8), (5, *size, 3))
    write_video(path, frames, fps)
    video = read_video(path)
    even = tuple(side + side % 2 for side in size)
    assert video.frames.shape == (5, *even, 3) and video.frames.dtype == np.uint8
    assert video.fps == pytest.approx(fps, rel=1e-6)
    # 8-bit YCbCr has fewer colours: rounding of its three values moves one of RGB by up to two levels.
    assert np.abs(video.frames.mean(axis=(0, 1, 2)) - color).max() <= 2


def test_a_clip_with_detail_survives_a_round_trip(tmp_path: Path) -> None:
    y, x = np.mgrid[0:48, 0:64]
    frames = np.stack(
        [
            np.stack([100 + 60 * np.sin((x + 2 * t) / 9), 120 + 50 * np.cos(y / 7), 90 + 30 * np.sin((x + y) / 11)], -1)
            for t in range(9)
        ]
    ).astype(np.uint8)
    write_video(tmp_path / "a.mp4", frames, 16)
    error = np.abs(read_video(tmp_path / "a.mp4").frames.astype(int) - frames)
    assert error.mean() < 2 and error.max() < 16


def test_memory_does_not_get_into_the_bytes() -> None:
    frames, random = World().clip(0, "heldout").video[:3], np.random.default_rng(0)
    files = set()
    for size in random.integers(1_000, 200_000, 40):
        junk = [random.bytes(int(size))]  # so that the encoder's memory is not what it was
        files.add(video_bytes(frames, 16))
        del junk
    assert len(files) == 1


def test_the_same_frames_give_the_same_tagged_bytes() -> None:
    frames = shades(5)
    data = video_bytes(frames, 8)
    assert data == video_bytes(frames, 8)
    with av.open(io.BytesIO(data), "r") as container:
        frame = next(container.decode(video=0))
    assert frame.format.name == "yuv420p"
    assert (frame.colorspace, frame.color_primaries, frame.color_trc) == (1, 1, 1)  # BT.709 thrice
    assert frame.color_range == ColorRange.MPEG


def test_scale_repeats_pixels() -> None:
    checks = np.zeros((3, 4, 6, 3), dtype=np.uint8) + 60
    checks[:, ::2, ::2] = (180, 90, 60)
    with av.open(io.BytesIO(video_bytes(checks, 8, scale=4)), "r") as container:
        decoded = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    assert decoded.shape == (3, 16, 24, 3)
    inner = decoded[:, 1::4, 1::4].astype(int)  # away from the blocks' edges
    assert np.abs(inner - checks).mean() < 4


@pytest.mark.parametrize(
    ("frames", "fps", "scale"),
    [
        (np.zeros((2, 4, 4, 3), np.float32), 8, 1),
        (np.zeros((4, 4, 3), np.uint8), 8, 1),
        (np.zeros((0, 4, 4, 3), np.uint8), 8, 1),
        (np.zeros((2, 4, 4, 3), np.uint8), 0, 1),
        (np.zeros((2, 4, 4, 3), np.uint8), float("nan"), 1),
        (np.zeros((2, 4, 4, 3), np.uint8), 8, 0),
    ],
)
def test_what_is_no_video_is_not_written(frames: np.ndarray, fps: float, scale: int) -> None:
    with pytest.raises(UserError):
        video_bytes(frames, fps, scale=scale)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", shades(3), 8)
    before = (tmp_path / "a.mp4").read_bytes()
    with pytest.raises(UserError):
        write_video(tmp_path / "a.mp4", shades(3), -1)
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.mp4"]
    assert (tmp_path / "a.mp4").read_bytes() == before
    with pytest.raises(UserError, match="cannot write"):
        write_video(tmp_path / "a.mp4" / "b.mp4", shades(3), 8)


@pytest.mark.parametrize(
    ("fps", "expected"),
    [
        (None, list(range(12))),
        (16, list(range(12))),
        (8, [0, 2, 4, 6, 8, 10]),
        # Every second tick is a tie between two frames: the earlier one wins.
        (32, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 8, 9, 9, 10, 10, 11, 11]),
        (12, [0, 1, 3, 4, 5, 7, 8, 9, 11]),  # ticks at 0, 1.33, 2.67, 4, ... frames
        (10, [0, 2, 3, 5, 6, 8, 10, 11]),
    ],
)
def test_resampling_takes_the_nearest_frame(tmp_path: Path, fps: float | None, expected: list[int]) -> None:
    write_video(tmp_path / "a.mp4", shades(12), 16)
    assert numbers(read_video(tmp_path / "a.mp4", fps=fps).frames) == expected


def test_a_variable_frame_rate_is_read_by_time(tmp_path: Path) -> None:
    # Frame times in sixteenths of a second: quick, then slow, then quick again.
    write_timed(tmp_path / "v.mp4", shades(6), [0, 1, 2, 8, 12, 13], Fraction(1, 16))
    video = read_video(tmp_path / "v.mp4", fps=8)
    assert numbers(video.frames) == [0, 2, 2, 3, 3, 3, 4]  # ticks at 0, 2, 4, 6, 8, 10, 12; tick 10 is a tie
    assert video.fps == 8


def test_times_count_from_the_first_frame(tmp_path: Path) -> None:
    write_timed(tmp_path / "late.mkv", shades(4), [5, 6, 7, 8], Fraction(1, 8))
    assert numbers(read_video(tmp_path / "late.mkv", fps=8).frames) == [0, 1, 2, 3]


def test_frames_takes_the_start(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", shades(12), 16)
    assert numbers(read_video(tmp_path / "a.mp4", frames=5).frames) == [0, 1, 2, 3, 4]
    with pytest.raises(VideoError, match=r"a\.mp4: holds 6 frames at 8 fps, 9 are needed") as caught:
        read_video(tmp_path / "a.mp4", frames=9, fps=8)
    assert caught.value.reason == "too short"


@pytest.mark.parametrize("size", [(16, 16), (32, 32), (16, 24), (24, 16), (48, 100)])
def test_resizing_covers_and_crops_the_centre(tmp_path: Path, size: tuple[int, int]) -> None:
    # A grey ring on a dark ground with a bright centre, 32 x 64: the centre must stay in the centre, and stay round.
    y, x = np.mgrid[0:32, 0:64]
    disc = np.hypot(y - 15.5, x - 31.5) < 8
    frames = np.where(disc[None, :, :, None], np.uint8(200), np.uint8(40)).repeat(3, axis=3).repeat(2, axis=0)
    write_video(tmp_path / "a.mp4", frames, 8)
    frame = read_video(tmp_path / "a.mp4", size=size).frames[0]
    assert frame.shape == (*size, 3)
    bright = np.argwhere(frame.mean(axis=2) > 120)
    centre = (np.array(size) - 1) / 2
    assert np.abs(bright.mean(axis=0) - centre).max() < 0.6
    extent = bright.max(axis=0) - bright.min(axis=0)
    assert abs(int(extent[0]) - int(extent[1])) <= 1
    scale = max(size[0] / 32, size[1] / 64)
    assert len(bright) == pytest.approx(np.pi * (8 * scale) ** 2, rel=0.1)


def test_shrinking_does_not_alias(tmp_path: Path) -> None:
    stripes = np.zeros((2, 64, 64, 3), np.uint8) + 40
    stripes[:, :, ::2] = 200
    write_video(tmp_path / "a.mp4", stripes, 8)
    small = read_video(tmp_path / "a.mp4", size=(8, 8)).frames
    assert np.abs(small.astype(int) - 120).max() < 12


def rewritten(path: Path, *, degrees: int = 0, pixel_aspect: Fraction | None = None) -> Path:
    """A copy of a video that says it must be shown turned or with pixels that are not square."""
    target = path.with_name("rewritten.mp4")
    with av.open(str(path)) as source, av.open(str(target), "w") as container:
        stream = container.add_stream("libx264", rate=8, options={"crf": "4"})
        video = source.streams.video[0]
        stream.height, stream.width, stream.pix_fmt = video.height, video.width, "yuv420p"
        if pixel_aspect is not None:
            stream.codec_context.sample_aspect_ratio = pixel_aspect
        stream.set_display_rotation(degrees)
        for frame in source.decode(video):
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return target


@pytest.mark.parametrize(("degrees", "turns"), [(0, 0), (90, 1), (180, 2), (270, 3), (-90, 3)])
@pytest.mark.parametrize("size", [None, (20, 12)])
def test_rotated_videos_are_read_upright(
    tmp_path: Path, degrees: int, turns: int, size: tuple[int, int] | None
) -> None:
    frames = np.zeros((2, 32, 48, 3), np.uint8) + 50
    frames[:, :16, :24] = 200  # bright top left corner
    write_video(tmp_path / "a.mp4", frames, 8)
    upright = read_video(rewritten(tmp_path / "a.mp4", degrees=degrees), size=size).frames[0].mean(axis=2)
    expected = np.rot90(frames[0].mean(axis=2), turns)
    assert upright.shape == (size or expected.shape)
    quarters = [upright[: len(upright) // 2], upright[len(upright) // 2 :]]
    found = np.array(
        [[half[:, : half.shape[1] // 2].mean(), half[:, half.shape[1] // 2 :].mean()] for half in quarters]
    )
    assert np.array_equal(found > 120, np.rot90([[True, False], [False, False]], turns))


def test_pixels_are_made_square(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", shades(2, 32, 32), 8)
    wide = rewritten(tmp_path / "a.mp4", pixel_aspect=Fraction(3, 2))
    assert read_video(wide).frames.shape == (2, 32, 48, 3)


@pytest.mark.parametrize(("height", "matrix"), [(64, Colorspace.ITU601), (720, Colorspace.ITU709)])
def test_untagged_files_follow_the_custom_of_players(tmp_path: Path, height: int, matrix: Colorspace) -> None:
    color = np.array([190, 80, 60], dtype=np.uint8)
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=8, options={"crf": "4", "preset": "ultrafast"})
        stream.height, stream.width, stream.pix_fmt = height, 64, "yuv420p"
        pixels = np.broadcast_to(color, (height, 64, 3)).copy()
        frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(
            format="yuv420p", dst_colorspace=matrix, dst_color_range=ColorRange.MPEG
        )
        frame.colorspace = 2  # the file shall not name its matrix
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    found = read_video(tmp_path / "a.mp4").frames.mean(axis=(0, 1, 2))
    assert np.abs(found - color).max() < 2.5


def test_interlaced_frames_lose_their_comb(tmp_path: Path) -> None:
    # Brightness rises by 10 levels from one field to the next, so the two fields of a frame differ everywhere.
    fields = np.zeros((8, 32, 32, 3), np.uint8) + np.arange(8, dtype=np.uint8)[:, None, None, None] * 20 + 40
    fields[:, 1::2] += 10
    options = {"crf": "1", "threads": "1"}
    for name, parameters in (("progressive", {}), ("fields", {"x264-params": "interlaced=1:tff=1"})):
        encode(tmp_path / f"{name}.mp4", fields, options=options | parameters)
    progressive, deinterlaced = (
        read_video(tmp_path / f"{name}.mp4").frames.astype(int) for name in ("progressive", "fields")
    )
    assert progressive.shape == deinterlaced.shape
    assert np.abs(np.diff(progressive, axis=1)).mean() > 8  # lines of a frame that is not marked are left alone
    assert np.abs(np.diff(deinterlaced, axis=1)).mean() < 1
    assert np.diff(deinterlaced.mean(axis=(1, 2, 3))) == pytest.approx([20] * 7, abs=1)


def test_transparent_edges_take_no_hidden_colour(tmp_path: Path) -> None:
    # Left half red, right half transparent over green that nobody is to see, shrunk so that the two meet in a pixel.
    pixels = np.zeros((2, 32, 32, 4), np.uint8)
    pixels[:, :, :15] = (200, 0, 0, 255)
    pixels[:, :, 15:] = (0, 255, 0, 0)
    encode(tmp_path / "a.mov", pixels, codec="qtrle", pix_fmt="argb")
    frame = read_video(tmp_path / "a.mov", size=(8, 8)).frames[0].astype(int)
    assert np.abs(frame[:, 7] - (255, 255, 255)).max() < 4 and np.abs(frame[:, 0] - (200, 0, 0)).max() < 4
    assert np.abs(frame[..., 1] - frame[..., 2]).max() < 4


def test_pictures_are_shown_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for number, pixels in zip([2, 10, 9, 100], shades(4), strict=True):
        Image.fromarray(pixels).save(tmp_path / f"frame{number}.png")
    (tmp_path / "cover.png").write_bytes(b"not numbered")
    source = VideoSource("a", tmp_path)
    (window,) = read_windows(source, ReadOptions(8, 8, (16, 16), 1, picture_fps=4))
    assert isinstance(window, Window)
    assert numbers(window.frames) == [0, 0, 2, 2, 1, 1, 3, 3]
    assert window.source_seconds == 1.0


def test_pictures_are_turned_upright(tmp_path: Path) -> None:
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:, :16] = 200  # the left half, which is to be the upper one
    image = Image.fromarray(pixels)
    exif = image.getexif()
    exif[0x0112] = 6
    for number in range(2):
        image.save(tmp_path / f"{number}.jpg", exif=exif, quality=95)
    upright = read_video(tmp_path).frames[0]
    assert upright.shape == (32, 16, 3) and upright[:12].mean() > 190 and upright[20:].mean() < 10


def audio_only(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def noisy_video() -> bytes:
    return video_bytes(np.random.default_rng(0).integers(0, 255, (9, 64, 64, 3), dtype=np.uint8), 8)


def overwritten(path: Path) -> None:
    """A file whose index is intact and of whose pictures a sixth is zeros."""
    data = noisy_video()
    third, half = len(data) // 3, len(data) // 2
    path.write_bytes(data[:third] + bytes(half - third) + data[half:])


def scratched(path: Path) -> None:
    """A file with a few wrong bytes in one picture, which a decoder covers up and reports."""
    data = noisy_video()
    path.write_bytes(data[: len(data) * 3 // 10] + b"\xff" * 20 + data[len(data) * 3 // 10 + 20 :])


def playlist(path: Path) -> None:
    path.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://localhost/a.ts\n#EXT-X-ENDLIST\n")


@pytest.mark.parametrize(
    ("make", "reasons"),
    [
        (lambda path: None, {"no such file"}),
        (lambda path: path.mkdir(), {"no pictures"}),
        (lambda path: path.touch(), {"empty file"}),
        (lambda path: path.write_text("this is a text\n" * 100), {"unreadable"}),
        (lambda path: path.write_bytes(bytes(5000)), {"unreadable"}),
        (overwritten, {"unreadable", "damaged"}),
        (scratched, {"damaged"}),
        (audio_only, {"no video stream"}),
        (playlist, {"unreadable"}),
    ],
)
def test_bad_files_are_refused_in_one_line(tmp_path: Path, make: Callable[[Path], object], reasons: set[str]) -> None:
    path = tmp_path / "bad.mp4"
    make(path)
    with pytest.raises(VideoError) as caught:
        read_video(path, frames=9, fps=8)
    assert caught.value.reason in reasons
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("share", [0.01, 0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95])
def test_a_file_cut_short_is_refused(tmp_path: Path, share: float) -> None:
    data = video_bytes(shades(9, 64, 64), 8)
    (tmp_path / "cut.mp4").write_bytes(data[: int(len(data) * share)])
    with pytest.raises(VideoError, match=r"cut\.mp4"):
        read_video(tmp_path / "cut.mp4", frames=9, fps=8)


def test_names_with_colons_are_files(tmp_path: Path) -> None:
    write_video(tmp_path / "concat:a.mp4", shades(2), 8)
    assert len(read_video(tmp_path / "concat:a.mp4").frames) == 2
    with pytest.raises(UserError, match="fps is 0"):
        read_video(tmp_path / "concat:a.mp4", fps=0)
