"""Videos made elsewhere: a folder of MP4 files with a captions file."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from avd.data import read_captions, read_video
from avd.types import UserError


def read_folder(folder: Path) -> tuple[np.ndarray, list[str]]:
    """uint8 (B, F, H, W, 3) and captions of the files named in `captions.jsonl`.

    Raises UserError if a file is missing or unreadable, or the clips differ in shape.
    """
    entries = read_captions(folder / "captions.jsonl")
    videos = [read_video(folder / entry.file).frames for entry in entries]
    for entry, video in zip(entries, videos, strict=True):
        if video.shape != videos[0].shape:
            raise UserError(
                f"{folder / entry.file} is {video.shape}, {entries[0].file} is {videos[0].shape}: "
                "clips measured together must have one length and size"
            )
    return np.stack(videos), [entry.caption for entry in entries]
