"""What is known of each official benchmark: where its prompts are, and how its code finds the videos it judges.

    vbench     {prompt}-{i}.mp4, all in one folder
    vbench2    {Dimension}/{the first 180 characters of the prompt}-{i}.mp4

The official code takes the suffix of the first name in a folder for all of them, and skips a video that it does not
find. So one file that does not belong turns every score into NaN, and one that is missing changes a score unseen.
"""

from __future__ import annotations

from dataclasses import dataclass

from avd.types import UserError


@dataclass(frozen=True)
class Benchmark:
    """A benchmark whose videos are judged by official code."""

    name: str
    """That of the suite, and of the Python package on PyPI and to import."""
    title: str
    """Its published name, and that of its folder in the official repository."""
    info_file: str
    """The JSON file with its prompts: a list of objects with `prompt_en` and `dimension`."""
    samples: int
    """Videos per prompt."""
    more_samples: dict[str, int]
    """Videos per prompt in dimensions where that is another number."""
    folder_per_dimension: bool
    dimensions: tuple[str, ...]
    """The names that its file of prompts may have, as the official code spells them."""
    name_length: int | None = None
    """Characters of the prompt that a file's name has; None is all."""

    @property
    def info_places(self) -> tuple[str, ...]:
        """Where the prompts are, below the package, a site-packages folder or a checkout."""
        inner = f"{self.name}/{self.info_file}"
        return self.info_file, inner, f"{self.title}/{inner}"


FPS = 16.0
"""Frames per second of the videos of every benchmark."""
FLICKERING = "temporal_flickering"
"""The dimension of VBench that official code may filter for videos that are still, which takes more samples."""

VBENCH = Benchmark(
    "vbench",
    "VBench",
    "VBench_full_info.json",
    5,
    {},
    folder_per_dimension=False,
    dimensions=(
        "subject_consistency",
        "background_consistency",
        FLICKERING,
        "motion_smoothness",
        "dynamic_degree",
        "aesthetic_quality",
        "imaging_quality",
        "object_class",
        "multiple_objects",
        "human_action",
        "color",
        "spatial_relationship",
        "scene",
        "appearance_style",
        "temporal_style",
        "overall_consistency",
    ),
)
VBENCH2 = Benchmark(
    "vbench2",
    "VBench-2.0",
    "VBench2_full_info.json",
    3,
    {"Diversity": 20},
    folder_per_dimension=True,
    dimensions=(
        "Composition",
        "Diversity",
        "Motion_Rationality",
        "Instance_Preservation",
        "Dynamic_Spatial_Relationship",
        "Dynamic_Attribute",
        "Motion_Order_Understanding",
        "Human_Interaction",
        "Complex_Landscape",
        "Complex_Plot",
        "Camera_Motion",
        "Human_Anatomy",
        "Human_Identity",
        "Human_Clothes",
        "Mechanics",
        "Thermotics",
        "Material",
        "Multi-View_Consistency",
    ),
    name_length=180,
)
_BENCHMARKS = {benchmark.name: benchmark for benchmark in (VBENCH, VBENCH2)}


def find_benchmark(name: str) -> Benchmark:
    """The benchmark of a name. Raises UserError for one that is not known."""
    if name not in _BENCHMARKS:
        raise UserError(f"suite {name!r} is no benchmark with a folder of its own: name {' or '.join(_BENCHMARKS)}")
    return _BENCHMARKS[name]
