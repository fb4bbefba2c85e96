"""Totals by the official formulas: against published rows, and against numbers worked out by hand."""

from __future__ import annotations

import pytest

from avd.evaluation.benchmarks.scoring import Category, Dimension, Scoring
from avd.evaluation.suites.vbench import VBench
from avd.evaluation.suites.vbench2 import VBench2
from avd.types import UserError

HUNYUAN_VIDEO = {
    "subject_consistency": 97.37,
    "background_consistency": 97.76,
    "temporal_flickering": 99.44,
    "motion_smoothness": 98.99,
    "dynamic_degree": 70.83,
    "aesthetic_quality": 60.36,
    "imaging_quality": 67.56,
    "object_class": 86.10,
    "multiple_objects": 68.55,
    "human_action": 94.40,
    "color": 91.60,
    "spatial_relationship": 68.68,
    "scene": 53.88,
    "appearance_style": 19.80,
    "temporal_style": 23.89,
    "overall_consistency": 26.44,
}
"""VBench's leaderboard, in per cent: its row of HunyuanVideo, whose totals are published too."""


def test_a_published_row_of_vbench_has_its_published_totals() -> None:
    values = VBench.scoring.scores({key: value / 100 for key, value in HUNYUAN_VIDEO.items()})
    assert values["quality"] == pytest.approx(0.8509, abs=5e-5)
    assert values["semantic"] == pytest.approx(0.7582, abs=5e-5)
    assert values["total"] == pytest.approx(0.8324, abs=5e-5)


@pytest.mark.parametrize(
    ("key", "least", "most", "weight"),
    [
        ("subject_consistency", 0.1462, 1.0, 1.0),
        ("background_consistency", 0.2615, 1.0, 1.0),
        ("temporal_flickering", 0.6293, 1.0, 1.0),
        ("motion_smoothness", 0.706, 0.9975, 1.0),
        ("dynamic_degree", 0.0, 1.0, 0.5),
        ("aesthetic_quality", 0.0, 1.0, 1.0),
        ("imaging_quality", 0.0, 1.0, 1.0),
        ("object_class", 0.0, 1.0, 1.0),
        ("multiple_objects", 0.0, 1.0, 1.0),
        ("human_action", 0.0, 1.0, 1.0),
        ("color", 0.0, 1.0, 1.0),
        ("spatial_relationship", 0.0, 1.0, 1.0),
        ("scene", 0.0, 0.8222, 1.0),
        ("appearance_style", 0.0009, 0.2855, 1.0),
        ("temporal_style", 0.0, 0.364, 1.0),
        ("overall_consistency", 0.0, 0.364, 1.0),
    ],
)
def test_the_constants_are_the_published_ones(key: str, least: float, most: float, weight: float) -> None:
    """scripts/constant.py of VBench, line by line."""
    (found,) = [each for each in VBench.scoring.dimensions if each.key == key]
    assert (found.least, found.most, found.weight) == (least, most, weight)


def test_vbench_totals_of_extremes_are_0_and_1() -> None:
    for value in ("least", "most"):
        extremes = {each.key: getattr(each, value) for each in VBench.scoring.dimensions}
        totals = VBench.scoring.scores(extremes)
        expected = pytest.approx(0.0 if value == "least" else 1.0)
        assert totals["total"] == expected and totals["quality"] == expected and totals["semantic"] == expected


def test_vbench2_is_the_mean_of_the_means_of_its_categories() -> None:
    scores = {each.key: (number + 1) / 20 for number, each in enumerate(VBench2.scoring.dimensions)}
    assert list(scores)[:2] == ["composition", "diversity"] and len(scores) == 18
    values = VBench2.scoring.scores(scores)
    # Dimensions 1-2, 3-4, 5-11, 12-14 and 15-18, in twentieths.
    means = {"creativity": 1.5, "commonsense": 3.5, "controllability": 8.0, "human_fidelity": 13.0, "physics": 16.5}
    for key, mean in means.items():
        assert values[key] == pytest.approx(mean / 20)
    assert values["total"] == pytest.approx(42.5 / 5 / 20)


def test_a_partial_result_has_no_total() -> None:
    scores = {each.key: 0.5 for each in VBench.scoring.dimensions}
    del scores["scene"]
    values = VBench.scoring.scores(scores)
    assert values["total"] is None and values["semantic"] is None and values["scene"] is None
    assert values["quality"] is not None and values["color"] == 0.5
    assert [each.name for each in VBench.scoring.missing(values)] == ["scene"]


def test_every_value_is_a_measure() -> None:
    for suite in (VBench, VBench2):
        keys = [measure.key for measure in suite.measures]
        assert list(suite.scoring.scores({})) == keys and len(set(keys)) == len(keys)


def test_dimensions_are_chosen_by_name_whatever_its_case() -> None:
    """The official list of VBench-2.0 spells one of them `Complex_LandScape`, and its code has no such module."""
    chosen = VBench2.scoring.choose(["multi_view_consistency", "Complex_LandScape"])
    assert [each.name for each in chosen] == ["Complex_Landscape", "Multi-View_Consistency"]
    assert VBench2.scoring.choose([]) == VBench2.scoring.dimensions
    with pytest.raises(UserError, match=r"VBench has no dimension 'Diversity': choose from subject_consistency, "):
        VBench.scoring.choose(["scene", "Diversity"])


def test_a_weight_is_a_share_of_the_mean() -> None:
    category = Category("p", "P", "", (Dimension("a", "", weight=0.5), Dimension("b", "", least=0.2, most=0.7)))
    assert category.score({"a": 0.3, "b": 0.45}) == pytest.approx((0.5 * 0.3 + 1.0 * 0.5) / 1.5)
    scoring = Scoring(VBench.scoring.benchmark, "VBench", (category,), install="")
    assert scoring.scores({"a": 0.3, "b": 0.45})["total"] == pytest.approx(0.65 / 1.5)
