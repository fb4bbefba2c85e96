"""Cut-down files of prompts, with every trap that the official ones hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

LONG = "A man walks through a town, and " * 5 + "then at the corner, he turns and goes back home again"
"""It has 213 characters, and the 180th is a space."""

VBENCH_ENTRIES: list[dict[str, Any]] = [
    {"prompt_en": "a red square, frozen in time", "dimension": ["temporal_flickering"]},
    {"prompt_en": "a red square", "dimension": ["color"], "auxiliary_info": {"color": {"color": "red"}}},
    {"prompt_en": "a blue circle", "dimension": ["subject_consistency", "dynamic_degree"]},
    {"prompt_en": "A blue circle", "dimension": ["scene"]},
    {"prompt_en": "a red square", "dimension": ["overall_consistency", "imaging_quality"]},
]
VBENCH2_ENTRIES: list[dict[str, Any]] = [
    {"prompt_en": "a red square", "dimension": ["Diversity"]},
    {"prompt_en": LONG, "dimension": ["Complex_Plot"], "auxiliary_info": ["Does he turn?"]},
    {"prompt_en": "a red square", "dimension": ["Multi-View_Consistency"]},
    {"prompt_en": "a blue circle", "dimension": ["Human_Anatomy"]},
    {"prompt_en": "a blue circle", "dimension": ["Human_Anatomy"]},
]


def write_infos(folder: Path) -> Path:
    """Both files, where they lie in a site-packages folder; returns that."""
    for package, name, entries in (
        ("vbench", "VBench_full_info.json", VBENCH_ENTRIES),
        ("vbench2", "VBench2_full_info.json", VBENCH2_ENTRIES),
    ):
        (folder / package).mkdir(parents=True)
        (folder / package / name).write_text(json.dumps(entries))
    return folder
