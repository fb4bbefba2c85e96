"""Loss curves: every number of a run's `metrics.jsonl`, one small panel each."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from avd.types import UserError

Points = list[tuple[float, float]]

_COLUMNS = 3
_SMOOTHING_SHARE = 0.05  # the heavy line is a running mean over this share of the points


def loss_curves(metrics: Path, path: Path, *, x: str = "update") -> None:
    """Draw each numeric field of a `metrics.jsonl` against the field `x` and save the picture to `path` as PNG.

    A line need not hold every field; non-finite values are left out. A last line cut short, as a running or killed run
    leaves it, is ignored.

    Raises `UserError` when the file is missing, has a line that is not a JSON object, or holds nothing to draw.
    """
    curves = _read_curves(metrics, x)
    columns = min(_COLUMNS, len(curves))
    rows = math.ceil(len(curves) / columns)
    figure = Figure(figsize=(4.2 * columns, 2.6 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, (key, points) in zip(panels, curves.items(), strict=False):
        _draw(axes, key, points)
        axes.set_xlabel(x, fontsize=8)
    for axes in panels[len(curves) :]:
        axes.set_axis_off()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def _read_curves(metrics: Path, x: str) -> dict[str, Points]:
    curves: dict[str, Points] = defaultdict(list)
    for entry in _read_lines(metrics):
        if not _is_number(entry.get(x)):
            continue
        for key, value in entry.items():
            if key != x and _is_number(value):
                curves[key].append((entry[x], value))
    if not curves:
        raise UserError(
            f'{metrics} holds no numbers against "{x}"; name the metrics.jsonl of a run that has made an update'
        )
    return curves


def _read_lines(metrics: Path) -> list[dict[str, Any]]:
    try:
        lines = metrics.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(
            f"cannot read metrics from {metrics}: {error.strerror}; name the metrics.jsonl of a run"
        ) from error
    entries = []
    for number, line in enumerate(lines, start=1):
        try:
            entry = json.loads(line)
            if not isinstance(entry, dict):
                raise ValueError
        except ValueError as error:
            if number == len(lines):
                break
            raise UserError(f"{metrics}, line {number}, is not a JSON object; remove that line") from error
        entries.append(entry)
    return entries


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _draw(axes: Axes, key: str, points: Points) -> None:
    xs, ys = zip(*points, strict=True)
    window = max(1, round(_SMOOTHING_SHARE * len(ys)))
    axes.plot(xs, ys, color="#9db4c8", linewidth=0.8)
    axes.plot(xs, _running_mean(ys, window), color="#1f5f8b", linewidth=1.6)
    axes.set_title(key, fontsize=9, loc="left")
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.5)


def _running_mean(values: tuple[float, ...], window: int) -> np.ndarray:
    """Mean over `window` values around each, over fewer at the ends."""
    kernel = np.ones(window)
    return np.convolve(values, kernel, "same") / np.convolve(np.ones(len(values)), kernel, "same")
