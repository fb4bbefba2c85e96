"""Is a video, or a window of it, fit to be learnt from? Judged on decoded frames, before anything is encoded.

A file is refused for what is true of all of it: its frame rate, its size, what the crop leaves. A window is refused by
itself: for a hard cut inside it, for black frames, and where nothing moves.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from avd.measures.footage import black, hard_cuts, repeated
from avd.measures.video import motion_of_thumbnails, thumbnails
from avd.types import UserError

MIN_KEPT = 1 / 8
"""Least share of a picture left by the crop where nobody asks for more; below it a caption no longer says what is
left."""
_TOY_SIZE = 128
"""Clips with a smaller side are drawn, as those of the built-in world, where captions name what rests."""
_STILL = 4 / 255
"""Most that any part of a still changes by, once it has been encoded with its noise."""


@dataclass(frozen=True)
class Checks:
    """What is asked of videos. The defaults ask for nothing but `MIN_KEPT`; `recommended` gives those of a clip.

    Raises `UserError` for limits that make no sense.
    """

    min_fps: float = 0.0
    """Least frames per second a file is stored with; 0: any."""
    min_size: int = 0
    """Least pixels of the shorter side of a file's pictures; 0: any."""
    min_kept: float = MIN_KEPT
    """Least share of the picture left by the crop to the clip's shape; 0: any."""
    min_motion: float = 0.0
    """Least motion of a window, as `avd.measures.video` measures it, in shorter sides per second; 0: stills too."""
    max_black: float = 1.0
    """Largest share of a window's frames that may be black; 1: any."""
    cuts: bool = True
    """Whether windows may have hard cuts in them."""

    def __post_init__(self) -> None:
        for name, value in ((each.name, getattr(self, each.name)) for each in fields(self)):
            most = 1.0 if name in {"min_kept", "max_black"} else float("inf")
            if not 0 <= value <= most or value == float("inf"):
                limits = "at least 0" if most > 1 else "from 0 to 1"
                raise UserError(f"{name} is {value:g}: it must be a number, {limits}")

    def __str__(self) -> str:
        return (
            f"min-fps {self.min_fps:g}, min-size {self.min_size}, min-kept {self.min_kept:g}, "
            f"min-motion {self.min_motion:g}, max-black {self.max_black:g}, {'cuts' if self.cuts else 'no-cuts'}"
        )


def recommended(fps: float, height: int, width: int) -> Checks:
    """What is sensible to ask of videos for clips of a rate and size.

    A tenth of the frames repeated at most, pictures enlarged no more than twice, half of the picture kept, no cuts,
    no more than a tenth of a clip black, and motion of 0.1 % of the shorter side per second: stills with a camera's
    noise measure up to 0.035 %, a single object of 1/250 of the picture that crosses it in ten seconds 0.2 %. Clips
    with a side below 128 pixels are drawn ones, of any rate and size, in which things may rest.
    """
    if min(height, width) < _TOY_SIZE:
        return Checks(max_black=0.1, cuts=False)
    return Checks(0.9 * fps, min(height, width) // 2, 0.5, 0.001, 0.1, cuts=False)


@dataclass(frozen=True)
class Examined:
    """What a window's frames say: why it is refused, if it is, and how many of its frames repeat the one before."""

    reason: str | None
    detail: str
    repeated: int


def examine(frames: np.ndarray, fps: float, checks: Checks) -> Examined:
    """A window of uint8 frames (F, H, W, 3) at a rate, held against `checks`."""
    small = thumbnails(frames)
    reason, detail = _fault(small, fps, checks) or (None, "")
    return Examined(reason, detail, int(repeated(small).sum()))


def _fault(small: np.ndarray, fps: float, checks: Checks) -> tuple[str, str] | None:
    dark = float(black(small).mean())
    if dark > checks.max_black:
        return "black", f"{dark:.0%} of its frames are black, at most {checks.max_black:.0%} may be"
    cuts = [] if checks.cuts else hard_cuts(small)
    if cuts:
        times = ", ".join(f"{cut / fps:.2f} s" for cut in cuts[:4])
        return "hard cut", f"cuts {times} after its start"
    if checks.min_motion and len(small) > 1:
        if np.abs(small - small[:1]).max() <= _STILL:
            return "still", "nothing changes in it"
        motion = motion_of_thumbnails(small) * fps
        if motion < checks.min_motion:
            return "near-static", f"moves {motion:.2%} of its shorter side per second, {checks.min_motion:.2%} is asked"
    return None
