"""Every measure moves with its own damage, in proportion, and not with the others', on rendered and on real footage."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations, pairwise

import numpy as np
import pytest

from avd.measures.diversity import Signature, appearance_distance, motion_distance, signature
from helpers.damages import DAMAGES, MEASURES, SIZE, Responses, clip_of, rendered_footage, response, responses
from helpers.real_footage import real_windows

OWN = {
    "saturation": {"saturate": 1},
    "saturated_share": {"saturate": 1},
    "clipped_share": {"saturate": 1},
    "colourfulness": {"saturate": 1},
    "contrast": {"blur": -1},
    "sharpness": {"blur": -1},
    "temporal_flickering": {"jitter": -1, "shake": -1},
    "temporal_variance": {"freeze": -1, "slow": -1, "jitter": 1},
    "motion": {"freeze": -1, "slow": -1},
    "motion_smoothness_dis": {"jitter": -1, "shake": -1},
    "dynamic_degree_dis": {"freeze": -1, "slow": -1},
    "dynamic_level_dis": {"freeze": -1, "slow": -1},
}
"""What a measure is for: the damage that moves it, and in which direction."""

ALSO = {
    "clipped_share": {"jitter"},  # what was bright already is pushed over the end
    "temporal_flickering": {"freeze", "slow", "blur"},  # motion changes pixels too, edges most of all
    "temporal_variance": {"saturate", "shake", "blur"},  # an energy: it scales with colours and edges
    "motion": {"shake"},  # displacements come back, but only some within the frames that are averaged
    "motion_smoothness_dis": {"freeze", "slow", "blur"},  # there is less to predict
    "dynamic_degree_dis": {"shake"},  # a camera that shakes moves the picture
    "dynamic_level_dis": {"shake"},
}
"""What moves a measure besides, by its nature; docs/measures.md says so."""

BLIND = 0.2
"""A measure moves with foreign damage at full strength by less than this share of what its own does."""


@pytest.fixture(scope="module", params=["rendered", "real"])
def footage(request: pytest.FixtureRequest) -> list[np.ndarray]:
    return rendered_footage() if request.param == "rendered" else real_windows(SIZE)


@pytest.fixture(scope="module")
def moved(footage: list[np.ndarray]) -> Responses:
    return responses(footage)


@pytest.mark.parametrize("measure", MEASURES)
def test_a_measure_moves_with_its_own_damage_step_by_step(measure: str, moved: Responses) -> None:
    for damage, direction in OWN[measure].items():
        steps = direction * np.diff(moved[damage][:, MEASURES.index(measure)])
        assert (steps >= 0).all() and steps.sum() > 0, (damage, steps)


@pytest.mark.parametrize("measure", MEASURES)
def test_a_measure_is_blind_to_the_other_damages(measure: str, moved: Responses) -> None:
    span = max(abs(response(moved, damage, measure)) for damage in OWN[measure])
    for damage in set(DAMAGES) - set(OWN[measure]) - ALSO.get(measure, set()):
        assert abs(response(moved, damage, measure)) < BLIND * span, damage


Distance = Callable[[Signature, Signature], float]


def diversity(clips: list[np.ndarray], distance: Distance) -> float:
    signatures = [signature(clip) for clip in clips]
    return float(np.mean([distance(a, b) for a, b in combinations(signatures, 2)]))


@pytest.mark.parametrize("distance", [appearance_distance, motion_distance])
def test_diversity_falls_with_every_seed_that_repeats_another(distance: Distance, footage: list[np.ndarray]) -> None:
    seeds = [clip_of(each) for each in footage[:4]]
    values = [diversity([*seeds[: 4 - copies], *seeds[:1] * copies], distance) for copies in range(4)]
    assert all(a > b for a, b in pairwise(values)) and values[-1] == 0.0
    # Encoding and grain do not pass for variety.
    grain = np.random.default_rng(0).normal(0, 4, (4, *seeds[0].shape))
    noisy = [np.clip(seeds[0] + one, 0, 255).astype(np.uint8) for one in grain]
    assert diversity(noisy, distance) < 0.1 * values[0]


@pytest.mark.parametrize(
    ("distance", "damages"),
    [(appearance_distance, ("jitter", "shake", "blur")), (motion_distance, ("jitter", "blur", "saturate"))],
)
def test_diversity_is_blind_to_other_damage(
    distance: Distance, damages: tuple[str, ...], footage: list[np.ndarray]
) -> None:
    unharmed = diversity([clip_of(each) for each in footage], distance)
    for name in damages:
        damage, strengths = DAMAGES[name]
        harmed = diversity([damage(each, strengths[-1]) for each in footage], distance)
        assert harmed == pytest.approx(unharmed, rel=BLIND), name
