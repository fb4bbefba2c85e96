"""A clip to the file that a suffix names, with a comment that says how it was made, and the comment back.

    .mp4    H.264                                    .gif   256 colours per frame, a duration in hundredths of a second
    .webm   VP9                                      (none) a folder of PNG pictures, 00000.png and so on, without loss

The comment is metadata of the container, a comment block of the GIF, a text chunk of each PNG.
"""

from __future__ import annotations

import io
from pathlib import Path

import av
import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from avd.data.video.mp4 import Container, exact_rate, video_bytes
from avd.files import atomic_folder, write_atomically
from avd.types import UserError

_CONTAINERS: dict[str, Container] = {".mp4": "mp4", ".webm": "webm"}
_KEY = "comment"
_FIRST_PICTURE = "00000.png"


def check_output(path: Path) -> None:
    """Raise UserError for a suffix that no clip is written as."""
    if path.suffix.lower() not in (*_CONTAINERS, ".gif", ""):
        raise UserError(
            f"output {path} is no kind of video known here: name one that ends in .mp4, .webm or .gif, or for a "
            "folder of PNG pictures one without a suffix"
        )


def write_clip(path: Path, frames: np.ndarray, fps: float, comment: str) -> None:
    """Write `frames`, uint8 (F, H, W, 3), as what the suffix of `path` says, atomically. `comment` is ASCII.

    Raises UserError as `check_output`, and for an `fps` outside 0.01 to 1000.
    """
    check_output(path)
    suffix = path.suffix.lower()
    if not suffix:
        _write_pictures(path, frames, comment)
    elif suffix == ".gif":
        write_atomically(path, _gif_bytes(frames, fps, comment))
    else:
        write_atomically(path, video_bytes(frames, fps, container=_CONTAINERS[suffix], comment=comment))


def read_comment(path: Path) -> str | None:
    """The comment of what `write_clip` wrote; None if it has none. Raises UserError for what is no such file."""
    try:
        if path.is_dir() or path.suffix.lower() == ".gif":
            with Image.open(path / _FIRST_PICTURE if path.is_dir() else path) as picture:
                found = picture.info.get(_KEY)
            return found.decode("ascii", "replace") if isinstance(found, bytes) else found
        with av.open(str(path)) as container:
            return {key.lower(): value for key, value in container.metadata.items()}.get(_KEY)
    except (OSError, UnidentifiedImageError, av.FFmpegError) as error:
        raise UserError(f"{path} cannot be read as a video or a folder of pictures: name another") from error


def _write_pictures(folder: Path, frames: np.ndarray, comment: str) -> None:
    about = PngInfo()
    about.add_text(_KEY, comment)
    with atomic_folder(folder) as writing:
        for i, pixels in enumerate(frames):
            Image.fromarray(pixels).save(writing / f"{i:05d}.png", pnginfo=about)


def _gif_bytes(frames: np.ndarray, fps: float, comment: str) -> bytes:
    """Frames whose ends lie where the rate has them, to a hundredth of a second: rounding does not add up."""
    rate, memory = exact_rate(fps), io.BytesIO()
    ends = [round(100 * (i + 1) / rate) for i in range(len(frames))]
    durations = [10 * (end - begin) for begin, end in zip([0, *ends], ends, strict=False)]
    first, *others = (Image.fromarray(pixels) for pixels in frames)
    first.save(
        memory,
        "GIF",
        save_all=True,
        append_images=others,
        duration=durations,
        loop=0,
        comment=comment.encode("ascii"),
    )
    return memory.getvalue()
