"""Values of shipped recipes that follow from the teacher's own."""

from __future__ import annotations

import math

import pytest

from avd.config import load_recipe
from avd.models.family import read_facts

MINIATURE = read_facts("wan-mini")


@pytest.mark.parametrize(
    ("recipe", "term"),
    [
        ("lcm", "consistency"),
        ("pcm", "phased_consistency"),
        ("dcm-semantic", "phased_consistency"),
        ("dcm-detail", "phased_consistency"),
        ("scm", "continuous_consistency"),
        ("rcm", "continuous_consistency"),
        ("dp-dmd", "anchor"),
    ],
)
def test_what_learns_the_teachers_path_learns_the_one_that_it_is_sampled_on(recipe: str, term: str) -> None:
    section = load_recipe(recipe).objective.section(term)
    own = MINIATURE.settings
    assert (section.guidance, getattr(section, "shift", own.shift)) == (own.guidance, own.shift)  # type: ignore[attr-defined]


@pytest.mark.parametrize("recipe", ["scm", "rcm"])
def test_continuous_consistency_draws_levels_for_as_many_frames_as_clips_have(recipe: str) -> None:
    expected = -0.8 + math.log(math.sqrt(MINIATURE.sizes.frames()))
    found = load_recipe(recipe).objective.section("continuous_consistency")
    assert found.level_mean == pytest.approx(expected, abs=0.01)  # type: ignore[attr-defined]


def test_the_levels_of_rcm_have_the_models_shift() -> None:
    recipe, shift = load_recipe("rcm"), MINIATURE.settings.shift
    assert recipe.rollout.drawn_shift == recipe.objective.distribution_matching.shift == shift


@pytest.mark.parametrize("expert", ["high", "low"])
def test_phased_dmd_on_wan_has_its_trainers_share_of_the_student(expert: str) -> None:
    assert load_recipe(f"phased-dmd-{expert}-wan2.1-1.3b").fake_score.ida == 0.97
