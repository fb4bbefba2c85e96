from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from avd.report import contact_sheet


def grey(level: int, frames: int = 9) -> np.ndarray:
    """A clip (F, 8, 12, 3) whose first frame is `level` and whose last is `level + 40`."""
    levels = np.linspace(level, level + 40, frames).astype(np.uint8)
    return np.broadcast_to(levels[:, None, None, None], (frames, 8, 12, 3)).copy()


def test_the_sheet_holds_every_strip_from_first_to_last_frame(tmp_path: Path) -> None:
    path = tmp_path / "new" / "sheet.png"
    contact_sheet(path, [("teacher", [grey(70), grey(120)]), ("student", [grey(170)])], frames=3, scale=2)
    pixels = np.asarray(Image.open(path))
    for level in [70, 110, 120, 160, 170, 210]:
        assert (pixels == level).all(axis=-1).sum() >= 16 * 24, level


def test_captions_make_room_for_themselves(tmp_path: Path) -> None:
    rows = [("teacher", [grey(70)])]
    contact_sheet(tmp_path / "plain.png", rows)
    contact_sheet(tmp_path / "captioned.png", rows, captions=["a red disc glides slowly to the left " * 2])
    plain, captioned = (Image.open(tmp_path / name).size for name in ("plain.png", "captioned.png"))
    assert captioned[0] == plain[0] and captioned[1] > plain[1]


def test_short_videos_show_all_their_frames(tmp_path: Path) -> None:
    contact_sheet(tmp_path / "sheet.png", [("a", [grey(70, frames=2)])], frames=5)
    assert Image.open(tmp_path / "sheet.png").width < 200
