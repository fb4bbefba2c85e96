from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from avd.report import contact_sheet, loss_curves
from avd.types import UserError


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


def test_curves_are_drawn_despite_gaps_and_a_torn_last_line(tmp_path: Path) -> None:
    lines = [
        json.dumps({"update": i, "loss": 1 / (i + 1), "note": "x", "held_out": None if i % 2 else 0.5})
        for i in range(30)
    ]
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text("\n".join([*lines, '{"update": 30, "lo']))
    loss_curves(metrics, tmp_path / "plots" / "curves.png")
    assert np.asarray(Image.open(tmp_path / "plots" / "curves.png")).std() > 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no numbers"),
        ('{"epoch": 1, "loss": 2}\n', 'against "update"'),
        ('{"update": 1}\nnot JSON\n{"update": 2, "loss": 1}\n', "line 2"),
        ('[1]\n{"update": 2, "loss": 1}\n', "line 1"),
    ],
)
def test_metrics_that_cannot_be_drawn(tmp_path: Path, text: str, message: str) -> None:
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text(text)
    with pytest.raises(UserError, match=message):
        loss_curves(metrics, tmp_path / "curves.png")


def test_missing_metrics(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read metrics"):
        loss_curves(tmp_path / "absent.jsonl", tmp_path / "curves.png")
