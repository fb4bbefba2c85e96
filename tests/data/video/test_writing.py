"""Clips by suffix: what is in the file, how long it lasts, and what it says of itself."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from avd.data import read_video
from avd.data.video.writing import read_comment, write_clip
from avd.files import is_unfinished
from avd.types import UserError

COMMENT = '{"prompt": "\\u8272 a ball", "seed": 3, "long": "' + "x" * 900 + '"}'


def clip() -> np.ndarray:
    """A grey square that moves over a dark ground: 6 frames of 32 x 48."""
    frames = np.full((6, 32, 48, 3), 40, np.uint8)
    for i, frame in enumerate(frames):
        frame[8:20, 4 * i : 4 * i + 12] = 200
    return frames


@pytest.mark.parametrize("name", ["a.mp4", "a.webm", "a.GIF", "a"])
def test_a_clip_is_written_by_its_suffix_with_its_comment(name: str, tmp_path: Path) -> None:
    path, again = tmp_path / name, tmp_path / f"again-{name}"
    for each in (path, again):
        write_clip(each, clip(), 8, COMMENT)
    assert read_comment(path) == COMMENT
    if path.is_dir():
        files = sorted(path.iterdir())
        assert [file.name for file in files] == [f"{i:05d}.png" for i in range(6)]
        np.testing.assert_array_equal(np.stack([np.asarray(Image.open(file)) for file in files]), clip())
    elif path.suffix == ".GIF":
        with Image.open(path) as picture:
            assert picture.n_frames == 6
            durations = []
            for i in range(6):
                picture.seek(i)
                durations.append(picture.info["duration"])
                assert np.abs(np.asarray(picture.convert("RGB")).astype(int) - clip()[i]).max() < 8
        assert sum(durations) == 750 and set(durations) == {120, 130}
    else:
        video = read_video(path)
        assert video.fps == 8 and video.frames.shape == clip().shape
        assert np.abs(video.frames.astype(int) - clip()).mean() < 4
    files = [(path, again)] if path.is_file() else zip(sorted(path.iterdir()), sorted(again.iterdir()), strict=True)
    assert all(a.read_bytes() == b.read_bytes() for a, b in files)  # nothing of the time or the machine is in them
    assert not [entry for entry in tmp_path.iterdir() if is_unfinished(entry)]


def test_a_webm_holds_vp9(tmp_path: Path) -> None:
    write_clip(tmp_path / "a.webm", clip(), 8, "")
    with av.open(str(tmp_path / "a.webm")) as container:
        assert container.streams.video[0].codec_context.name in ("vp9", "libvpx-vp9")
    assert read_comment(tmp_path / "a.webm") is None


def test_other_suffixes_and_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"output .*a\.avi is no kind of video known here"):
        write_clip(tmp_path / "a.avi", clip(), 8, "")
    (tmp_path / "text.mp4").write_text("no video")
    for path in (tmp_path / "text.mp4", tmp_path, tmp_path / "gone.gif"):
        with pytest.raises(UserError, match="cannot be read as a video or a folder of pictures"):
            read_comment(path)
