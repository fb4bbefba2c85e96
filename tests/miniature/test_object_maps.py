"""What object maps say of scenes that are known."""

from __future__ import annotations

import numpy as np
import pytest

from avd.miniature.object_maps import map_channels, object_maps
from avd.world.scene import LEVELS, Background, Scene, Thing

GRID = (5, 3, 3)
COLOURS, SHAPES = LEVELS[0].colours, LEVELS[0].shapes
BACKGROUND = Background((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), (1.0, 0.0))


def scene(*things: Thing) -> Scene:
    return Scene(things, BACKGROUND)


def box(position: tuple[float, float], velocity: tuple[float, float] = (0.0, 0.0), colour: int = 2) -> Thing:
    return Thing("box", COLOURS[colour], (0.6, 0.3, 0.3), 0.15, position, "still", "right", velocity)


def by_cell(maps: np.ndarray) -> np.ndarray:
    """(frames, rows, columns of tokens, rows, columns of cells, channels)."""
    return maps.reshape(*GRID, 2, 2, -1)


def test_one_box_covers_its_area_in_its_place_under_its_names() -> None:
    maps = object_maps(scene(box((0.25, 0.75))), 0, GRID)
    assert maps.shape == (45, map_channels(0)) and maps.dtype == np.float32
    cells = by_cell(maps)
    area = (2 * 0.84 * 0.15) ** 2 * 36  # in cells, of which there are 6 x 6
    assert cells[..., 2].sum((1, 2, 3, 4)) == pytest.approx(area, rel=0.01)
    shape = len(COLOURS) + SHAPES.index("box")
    assert np.array_equal(cells[..., 2], cells[..., shape])
    others = [i for i in range(cells.shape[-1]) if i not in (2, shape)]
    assert not cells[..., others].any()
    assert cells[:, 2, 0, 0, 1, 2] == pytest.approx(cells[:, 2, 0, 0, 1, 2].max()) and not cells[:, 0].any()


def test_a_moving_box_moves_and_says_how_fast() -> None:
    cells = by_cell(object_maps(scene(box((0.2, 0.5), (0.03, 0.0))), 0, GRID))
    columns = cells[..., 2].sum((1, 3))  # (frames, columns of tokens, columns of cells)
    place = (columns.reshape(5, 6) * (np.arange(6) + 0.5) / 6).sum(1) / columns.sum((1, 2))
    expected = [0.2 + 0.03 * max(4 * i - 1.5, 0.0) for i in range(5)]
    assert place == pytest.approx(expected, abs=0.015)
    assert cells[..., -2].sum() == pytest.approx(0.03 / 0.04 * cells[..., 2].sum(), rel=1e-4)
    assert not cells[..., -1].any()


def test_maps_of_objects_add_up() -> None:
    first, second = box((0.25, 0.25)), box((0.7, 0.7), (0.0, 0.02), colour=4)
    both = object_maps(scene(first, second), 0, GRID)
    assert np.allclose(both, object_maps(scene(first), 0, GRID) + object_maps(scene(second), 0, GRID))
