"""What was measured of each clip, as a CSV file: a line per clip, for a spreadsheet or a plot of one's own."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from avd.evaluation.comparison import JudgedSet
from avd.evaluation.suite import Measure
from avd.files import write_text

_COLUMNS = ("row", "clip", "prompt", "repeat", "part", "frames", "height", "width", "fps")


def write_clip_values(path: Path, measures: Sequence[Measure], sets: Sequence[JudgedSet]) -> None:
    """Write the clips of all sets atomically; the columns after what a clip is are the measures that some clip has.

    Values are unscaled, as in `results.json`, and empty where a clip has none.
    """
    records = [(judged.name, record) for judged in sets for record in judged.records]
    keys = [each.key for each in measures if any(record.values.get(each.key) is not None for _, record in records)]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*_COLUMNS, *keys])
    for name, record in records:
        prompt, shape = record.prompt, record.shape
        about = (prompt.text, prompt.repeat, prompt.part, shape.frames, shape.height, shape.width, shape.fps)
        writer.writerow([name, record.clip, *about, *(record.values.get(key) for key in keys)])
    write_text(path, text.getvalue())
