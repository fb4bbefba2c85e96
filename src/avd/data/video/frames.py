"""Decoded frames to pictures: complete, opaque, upright, with square pixels, covering a size."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fractions import Fraction

import av
import numpy as np
from av.filter import Graph
from av.video.reformatter import Colorspace, Interpolation

# Accurate rounding and full chroma keep flat colours within a level of the truth; bit-exact is the same on every CPU.
SWSCALE = (
    Interpolation.BICUBIC
    | Interpolation.ACCURATE_RND
    | Interpolation.FULL_CHR_H_INT
    | Interpolation.FULL_CHR_H_INP
    | Interpolation.BITEXACT
)
BACKGROUND = 255
"""Level of the three colours behind transparent parts: white, as on a page."""
_UNSPECIFIED = 2  # AVCOL_SPC_UNSPECIFIED
_HDR_TRANSFERS = {16, 18}  # AVCOL_TRC_SMPTE2084 (PQ) and AVCOL_TRC_ARIB_STD_B67 (HLG)
_SMALLEST_INTERLACED = 16  # pixels per side; bwdif takes none much smaller


def is_hdr(frame: av.VideoFrame) -> bool:
    """Whether the frame's levels mean light beyond what sRGB can show, so that reading them as sRGB greys it."""
    return frame.color_trc in _HDR_TRANSFERS


def kept_share(frame: av.VideoFrame, size: tuple[int, int], pixel_aspect: Fraction) -> float:
    """The share of a frame that is left when it is scaled to cover `size`, (height, width), and cropped to it."""
    height, width = size[::-1] if _quarter_turns(frame) % 2 else size
    ratio = float(frame.width * pixel_aspect) / frame.height * height / width
    return min(ratio, 1 / ratio)


def shorter_side(frame: av.VideoFrame, pixel_aspect: Fraction) -> float:
    """Pixels of the shorter side of a frame, were its pixels square."""
    return min(float(frame.width * pixel_aspect), frame.height)


def picture(frame: av.VideoFrame, size: tuple[int, int] | None, pixel_aspect: Fraction) -> np.ndarray:
    """One frame as upright RGB, uint8 (H, W, 3), with square pixels, covering `size`, cropped to it about the centre.

    `size` is (height, width); None keeps the frame's own. Transparent parts show `BACKGROUND`.
    """
    quarter_turns = _quarter_turns(frame)
    true_width = float(frame.width * pixel_aspect)
    stored_size = size or (frame.height, max(1, round(true_width)))
    if size is not None and quarter_turns % 2:
        stored_size = (size[1], size[0])
    height, width = stored_size
    scale = max(height / frame.height, width / true_width)
    scaled_height = max(height, round(frame.height * scale))
    scaled_width = max(width, round(true_width * scale))
    if any(component.is_alpha for component in frame.format.components):
        frame = _opaque(frame)  # before scaling, which would blend colours that nobody sees into the edges
    pixels = _to_array(frame, "rgb24", scaled_height, scaled_width)
    top, left = (scaled_height - height) // 2, (scaled_width - width) // 2
    return np.rot90(pixels[top : top + height, left : left + width], quarter_turns)


def deinterlaced(frames: Iterable[av.VideoFrame]) -> Iterator[av.VideoFrame]:
    """Frames stored as two fields joined, one picture for both fields; other frames as they are.

    The filter (bwdif) looks at neighbouring frames, so it begins with the first interlaced frame and then sees all,
    until the size or format changes.
    """
    graph: Graph | None = None
    shape: tuple[int, int, str] | None = None
    for frame in frames:
        if graph is not None and shape != _shape(frame):
            yield from _drained(graph)
            graph = None
        if graph is None and frame.interlaced_frame and min(frame.height, frame.width) >= _SMALLEST_INTERLACED:
            graph, shape = _deinterlacer(frame), _shape(frame)
        if graph is None:
            yield frame
        else:
            graph.vpush(frame)
            yield from _filtered(graph)
    if graph is not None:
        yield from _drained(graph)


def _to_array(frame: av.VideoFrame, form: str, height: int, width: int) -> np.ndarray:
    # Files that name no colour matrix follow the custom of players: BT.709 if high definition, else BT.601.
    unnamed_hd = frame.colorspace == _UNSPECIFIED and frame.height >= 720
    return frame.to_ndarray(
        format=form,
        width=width,
        height=height,
        src_colorspace=Colorspace.ITU709 if unnamed_hd else None,
        interpolation=SWSCALE,
        threads=1,
    )


def _opaque(frame: av.VideoFrame) -> av.VideoFrame:
    pixels = _to_array(frame, "rgba", frame.height, frame.width)
    colors, alpha = pixels[..., :3].astype(np.uint16), pixels[..., 3:].astype(np.uint16)
    blended = (colors * alpha + BACKGROUND * (255 - alpha) + 127) // 255
    return av.VideoFrame.from_ndarray(blended.astype(np.uint8), format="rgb24")


def _quarter_turns(frame: av.VideoFrame) -> int:
    """By which to turn the stored picture counter-clockwise."""
    return round(frame.rotation / 90) % 4


def _shape(frame: av.VideoFrame) -> tuple[int, int, str]:
    return frame.width, frame.height, frame.format.name


def _deinterlacer(frame: av.VideoFrame) -> Graph:
    graph = Graph()
    source = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base or Fraction(1, 1000)
    )
    graph.link_nodes(source, graph.add("bwdif", "mode=send_frame:deint=interlaced"), graph.add("buffersink"))
    graph.configure()
    return graph


def _filtered(graph: Graph) -> Iterator[av.VideoFrame]:
    while True:
        try:
            yield graph.vpull()
        except (av.error.BlockingIOError, av.error.EOFError):
            return


def _drained(graph: Graph) -> Iterator[av.VideoFrame]:
    graph.vpush(None)
    yield from _filtered(graph)
