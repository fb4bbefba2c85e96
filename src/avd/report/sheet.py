"""Contact sheets: videos as strips of frames, one row of strips per model, for looking at on paper or in a README."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_INK, _PAPER = (32, 33, 36), (255, 255, 255)
_FONT_SIZE, _LINE = 15, 19  # pixels
_FRAME_GAP, _STRIP_GAP, _MARGIN = 2, 14, 16  # pixels


def contact_sheet(
    path: Path,
    rows: Sequence[tuple[str, Sequence[np.ndarray]]],
    *,
    captions: Sequence[str] = (),
    frames: int = 5,
    scale: int = 2,
) -> None:
    """Save a PNG with a labelled row for each model and a strip of frames for each of its videos.

    `rows` holds (label, videos), videos uint8 of shape (F, H, W, 3) and all of one size. The rows answer the same
    prompts, which `captions` writes above the columns. `frames` are taken evenly from first to last (all of them, if
    there are fewer) and magnified `scale` times without smoothing.
    """
    strips = [(label, [_strip(video, frames, scale) for video in videos]) for label, videos in rows]
    height, width = strips[0][1][0].shape[:2]
    columns = max(len(row) for _, row in strips)
    font = ImageFont.load_default(_FONT_SIZE)
    labels_width = _STRIP_GAP + math.ceil(max(font.getlength(label) for label, _ in strips))
    heads = [textwrap.wrap(caption, max(12, int(width / (0.52 * _FONT_SIZE)))) for caption in captions]
    head_height = _LINE * max((len(lines) for lines in heads), default=0)

    size = (
        2 * _MARGIN + labels_width + columns * (width + _STRIP_GAP) - _STRIP_GAP,
        2 * _MARGIN + head_height + len(strips) * (height + _STRIP_GAP) - _STRIP_GAP,
    )
    sheet = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(sheet)

    def corner(row: int, column: int) -> tuple[int, int]:
        left = _MARGIN + labels_width + column * (width + _STRIP_GAP)
        return left, _MARGIN + head_height + row * (height + _STRIP_GAP)

    for column, lines in enumerate(heads):
        draw.multiline_text((corner(0, column)[0], _MARGIN - 4), "\n".join(lines), fill=_INK, font=font)
    for i, (label, row) in enumerate(strips):
        draw.text((_MARGIN, corner(i, 0)[1] + height // 2), label, fill=_INK, font=font, anchor="lm")
        for j, strip in enumerate(row):
            sheet.paste(Image.fromarray(strip), corner(i, j))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)


def _strip(video: np.ndarray, frames: int, scale: int) -> np.ndarray:
    """Evenly spaced frames side by side: (F, H, W, 3) -> (scale H, scale frames W + gaps, 3)."""
    assert video.dtype == np.uint8 and video.ndim == 4 and video.shape[3] == 3, (video.dtype, video.shape)
    picks = np.linspace(0, len(video) - 1, min(frames, len(video))).round().astype(int)
    large = video[picks].repeat(scale, axis=1).repeat(scale, axis=2)
    gap = np.full((large.shape[1], _FRAME_GAP, 3), _PAPER, dtype=np.uint8)
    pieces = [piece for frame in large for piece in (frame, gap)]
    return np.concatenate(pieces[:-1], axis=1)
