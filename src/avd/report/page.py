"""The report page: one HTML file with the videos side by side, the measures, and where they come from."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import yaml
from pydantic_core import to_jsonable_python

from avd.evaluation.rows import Results, Row
from avd.files import write_atomically
from avd.report.columns import columns_of


def write_report(
    path: Path,
    results: Results,
    videos: Sequence[tuple[str, Mapping[str, bytes]]],
    *,
    title: str = "Few-step video, side by side",
) -> None:
    """Write a self-contained HTML page, in one piece: it needs no network, and plays wherever MP4 (H.264) plays.

    `videos` holds (prompt, MP4 bytes by row name). Columns follow the rows of `results`; a row without any video has
    measures and no column of videos, and a prompt that a row did not answer leaves a blank.
    """
    names = [row.name for row in results.rows if any(row.name in by_name for _, by_name in videos)]
    html = render_page(
        "report.html",
        results.rows,
        title=title,
        names=names,
        prompts=[(prompt, [_data_uri(by_name.get(name)) for name in names]) for prompt, by_name in videos],
        columns=columns_of(results.rows, details=True),
        meta=_yaml(results.meta) if results.meta else None,
    )
    write_atomically(path, html.encode())


def render_page(template: str, rows: Sequence[Row], **content: Any) -> str:
    """A page of the package's templates, all of which end with where the `rows` come from."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("avd.report"), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    return environment.get_template(template).render({"rows": rows, "recipes": _recipes(rows), "meta": None} | content)


def _data_uri(mp4: bytes | None) -> str | None:
    return None if mp4 is None else "data:video/mp4;base64," + base64.b64encode(mp4).decode("ascii")


def _recipes(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """(names of the rows that share it, recipe as YAML), each recipe once."""
    names_of: dict[str, list[str]] = {}
    for row in rows:
        if row.recipe is not None:
            names_of.setdefault(_yaml(row.recipe), []).append(row.name)
    return [(" · ".join(names), text) for text, names in names_of.items()]


def _yaml(value: dict[str, Any]) -> str:
    text: str = yaml.safe_dump(to_jsonable_python(value), sort_keys=False, allow_unicode=True)
    return text
