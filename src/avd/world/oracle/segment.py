"""Find the coloured regions of every frame: a smooth background is fitted and what stands out from it is outlined.

    background   a quadratic in x and y per frame and channel, fitted robustly (iteratively reweighted least squares)
    contrast     Euclidean sRGB distance of a pixel from the background, in [0, 3 ** 0.5]
    component    pixels above `EDGE_CONTRAST` that touch, if a quarter of them reach `CORE_CONTRAST`
    hue          direction from the background's colour to a pixel's: the same in an object's core and its blurred rim
    region       a component, or the part of it that has one hue where objects of several colours touch
    coverage     share of a pixel that an object covers: the pixel's place on the line from background to object colour

Positions and areas are sums of coverage, so they are finer than a pixel and hardly move with blur.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from avd.world.palette import COLOURS

EDGE_CONTRAST = 0.09
"""Above noise of 5/255 a channel and the textures of level 2; below half the faintest object's contrast of 0.22."""
CORE_CONTRAST = 0.16
MIN_AREA = 0.005
"""Least area of a region as a share of the frame: a quarter of the smallest object."""
MIN_PART = 0.0035
"""Least core, as a share of the frame, of one hue in a component of several."""
PART_TURN = 0.25
"""Least distance between the hues of two parts of a component, as unit vectors, so that noise splits nothing."""

_TUKEY_WIDTHS = (0.25, 0.18, 0.12, 0.09, 0.07)
"""Residuals above the width get no weight; the first fit is to the median colour, hence the wide start."""
_IN_FRAME = np.zeros((3, 3, 3), dtype=bool)
_IN_FRAME[1] = [[0, 1, 0], [1, 1, 1], [0, 1, 0]]
_COLOUR_SHARE = 0.4
"""A region's colour is the mean of this share of its pixels, those farthest from the background's colour."""


@dataclass(frozen=True)
class Regions:
    """The regions of a clip, one row each. Lengths are in sides, areas in frames, colours sRGB in [0, 1]."""

    frame: np.ndarray
    """Frame number, (N,)."""
    centre: np.ndarray
    """Centroid x and y, (N, 2)."""
    area: np.ndarray
    """(N,)."""
    rgb: np.ndarray
    """(N, 3)."""
    moments: np.ndarray
    """What tells shapes apart, free of size: spread, threefold and fourfold harmonic, (N, 3)."""


def fit_background(video: np.ndarray) -> np.ndarray:
    """Background of `video`, float (F, H, W, 3) in [0, 1], of the same shape."""
    frames, height, width, _ = video.shape
    step = max(1, min(height, width) // 24)
    basis = _quadratic(height, width)
    sample = np.ascontiguousarray(video[:, ::step, ::step].reshape(frames, -1, 3))
    design = np.ascontiguousarray(basis[::step, ::step].reshape(-1, basis.shape[-1]))
    terms = design.shape[1]
    squares = (design[:, :, None] * design[:, None, :]).reshape(-1, terms * terms)
    fitted = np.median(sample, axis=1, keepdims=True)
    for tukey in _TUKEY_WIDTHS:
        residual = sample - fitted
        weight = np.maximum(1.0 - np.einsum("fnc,fnc->fn", residual, residual) / tukey**2, 0.0) ** 2
        gram = (weight @ squares).reshape(frames, terms, terms) + 1e-4 * np.eye(terms, dtype=video.dtype)
        coefficients = np.linalg.solve(gram, design.T @ (weight[..., None] * sample))
        fitted = design @ coefficients
    return (basis.reshape(-1, terms) @ coefficients).reshape(video.shape)


def find_regions(video: np.ndarray, background: np.ndarray, palette: tuple[str, ...]) -> Regions:
    """Regions of `video`, float (F, H, W, 3), that stand out from `background`."""
    _, height, width, _ = video.shape
    excess = video - background
    contrast = np.sqrt(np.einsum("fhwc,fhwc->fhw", excess, excess))
    labels, _ = ndimage.label(contrast > EDGE_CONTRAST, structure=_IN_FRAME)
    _drop_faint(labels, contrast, MIN_AREA * height * width)
    named = np.array([COLOURS[name] for name in palette], dtype=np.float32) - background.mean(axis=(0, 1, 2))
    owner = _split_by_hue(labels, excess, named, MIN_PART * height * width)

    where = np.nonzero(owner)
    region = owner[where] - 1
    count = int(region.max()) + 1 if region.size else 0
    rgb = _region_colours(region, count, contrast[where], video[where])
    _, first = np.unique(region, return_index=True)
    step = rgb[region] - background[where]
    cover = np.clip(np.einsum("nc,nc->n", excess[where], step) / np.einsum("nc,nc->n", step, step), 0.0, 1.0)
    x, y = (where[2] + 0.5) / width, (where[1] + 0.5) / height
    area, centre, moments = _shape_sums(region, count, cover, x, y)
    return Regions(where[0][first], centre, area / (height * width), rgb, moments)


def _quadratic(height: int, width: int) -> np.ndarray:
    y, x = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    return np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=-1).astype(np.float32)


def _drop_faint(labels: np.ndarray, contrast: np.ndarray, least: float) -> None:
    """Set to 0 the labels of components that are too small or too faint to be an object."""
    inside = labels > 0
    size = np.bincount(labels[inside], minlength=labels.max() + 1)
    strong = np.bincount(labels[inside], contrast[inside] > CORE_CONTRAST, minlength=size.size)
    keep = (size >= least) & (strong >= 0.25 * size)
    labels[~keep[labels]] = 0


def _split_by_hue(component: np.ndarray, excess: np.ndarray, named: np.ndarray, least: float) -> np.ndarray:
    """Number the regions from 1 on without gaps: components, or their parts where these have hues of their own.

    `named` (N, 3) holds the excess over the background that the palette's colours would have.
    """
    inside = component > 0
    names = np.full(component.shape, -1)
    names[inside] = np.argmax(excess[inside] @ _unit(named).T, axis=1)
    core = inside.copy()  # surrounded by its own name: the blur between two objects is not
    core[:, [0, -1], :] = core[:, :, [0, -1]] = False
    middle = names[:, 1:-1, 1:-1]
    for other in (names[:, :-2, 1:-1], names[:, 2:, 1:-1], names[:, 1:-1, :-2], names[:, 1:-1, 2:]):
        core[:, 1:-1, 1:-1] &= middle == other
    table = np.bincount(component[core] * len(named) + names[core], minlength=(component.max() + 1) * len(named))
    table = table.reshape(-1, len(named))
    owner = component.copy()
    for label in np.flatnonzero((table >= least).sum(axis=1) > 1):
        mine = component == label
        hues: list[np.ndarray] = []
        for name in np.argsort(-table[label]):
            if table[label, name] < least:
                break
            hue = _unit(excess[mine & core & (names == name)].mean(axis=0))
            if all(np.linalg.norm(hue - known) > PART_TURN for known in hues):
                hues.append(hue)
        part = np.argmax(excess[mine] @ np.stack(hues).T, axis=1)
        owner[mine] = np.where(part == 0, label, owner.max() + part)
    used = np.bincount(owner.ravel()) > 0
    used[0] = False
    return np.where(used, np.cumsum(used), 0)[owner]


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-6)


def _region_colours(region: np.ndarray, count: int, contrast: np.ndarray, rgb: np.ndarray) -> np.ndarray:
    order = np.lexsort((-contrast, region))
    size = np.bincount(region, minlength=count)
    rank = np.arange(region.size) - np.repeat(np.cumsum(size) - size, size)
    best = order[rank < _COLOUR_SHARE * size[region[order]]]
    sums = [np.bincount(region[best], rgb[best, channel], minlength=count) for channel in range(3)]
    return np.stack(sums, axis=1) / np.bincount(region[best], minlength=count)[:, None]


def _shape_sums(
    region: np.ndarray, count: int, cover: np.ndarray, x: np.ndarray, y: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Area in pixels, centroid (count, 2) and shape moments (count, 3), all weighted by coverage."""

    def total(values: np.ndarray) -> np.ndarray:
        return np.bincount(region, cover * values, minlength=count)

    area = np.bincount(region, cover, minlength=count)
    centre = np.stack([total(x) / area, total(y) / area], axis=1)
    z = (x - centre[region, 0]) + 1j * (y - centre[region, 1])
    r2 = np.abs(z) ** 2
    r3, r4, z3, z4 = r2**1.5, r2 * r2, z**3, z**4
    third = _ratio(np.hypot(total(z3.real), total(z3.imag)), total(r3))
    fourth = _ratio(total(z4.real), total(r4))
    spread = _ratio(total(r4) * area, total(r2) ** 2)
    return area, centre, np.stack([spread, third, fourth], axis=1)


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """above / below, 0 where a region is too small to have such a moment."""
    return np.divide(above, below, out=np.zeros(above.shape), where=below > 0)
