"""Every measure moves with its own damage, in proportion, and not with the others', on rendered and on real footage.

Footage has 41 frames and a clip is every fourth of them, so slowing it down shows frames that were filmed, not repeated
ones. Each damage is applied in growing strengths to the same clips, and the means over clips are compared.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, fields, replace
from itertools import combinations, pairwise

import cv2
import numpy as np
import pytest

from avd.measures.clip import ClipMeasures, measure_clip
from avd.measures.diversity import Signature, appearance_distance, motion_distance, signature
from avd.world import World, render
from avd.world.damage import jitter_brightness, saturate
from helpers.real_footage import FRAMES, real_windows

STRIDE, SIZE = 4, (96, 128)
MEASURES = [field.name for field in fields(ClipMeasures)]

Damage = Callable[[np.ndarray, float], np.ndarray]
Changes = dict[str, np.ndarray]


def clip_of(footage: np.ndarray) -> np.ndarray:
    return footage[::STRIDE]


def freeze(footage: np.ndarray, share: float) -> np.ndarray:
    """Stands still for this share of the clip, at its end."""
    clip = clip_of(footage).copy()
    moving = round((len(clip) - 1) * (1 - share))
    clip[moving:] = clip[moving]
    return clip


def slow(footage: np.ndarray, pace: float) -> np.ndarray:
    stride = round(STRIDE * pace)
    return footage[::stride][: len(clip_of(footage))]


def shake(footage: np.ndarray, pixels: float) -> np.ndarray:
    """Each frame displaced by itself, by up to so many pixels either way."""
    clip, (height, width) = clip_of(footage), footage.shape[1:3]
    shifts = np.random.default_rng(0).uniform(-pixels, pixels, (len(clip), 2)).round()
    frames = [
        cv2.warpAffine(frame, np.array([[1, 0, x], [0, 1, y]]), (width, height), borderMode=cv2.BORDER_REPLICATE)
        for frame, (x, y) in zip(clip, shifts, strict=True)
    ]
    return np.stack(frames)


def blur(footage: np.ndarray, sigma: float) -> np.ndarray:
    return np.stack([cv2.GaussianBlur(frame, (0, 0), sigma) for frame in clip_of(footage)])


DAMAGES: dict[str, tuple[Damage, tuple[float, ...]]] = {
    "saturate": (lambda footage, factor: saturate(clip_of(footage), factor), (1.5, 2.0, 3.0)),
    "freeze": (freeze, (0.3, 0.7, 1.0)),
    "slow": (slow, (0.75, 0.5, 0.25)),
    "jitter": (lambda footage, amplitude: jitter_brightness(clip_of(footage), amplitude, 0), (0.02, 0.05, 0.1)),
    "shake": (shake, (1.0, 2.0, 4.0)),
    "blur": (blur, (1.0, 2.0, 4.0)),
}

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


def rendered_footage() -> list[np.ndarray]:
    """Moving clips of levels 0 and 2, at a quarter of their speed."""
    footage = []
    for level in (0, 2):
        scenes = [World(level).clip(index, "heldout").scene for index in range(12)]
        for scene in [scene for scene in scenes if scene.things[0].speed != "still"][:4]:
            x, y = scene.pan
            slowed = tuple(
                replace(thing, velocity=(thing.velocity[0] / STRIDE, thing.velocity[1] / STRIDE))
                for thing in scene.things
            )
            scene = replace(scene, things=slowed, pan=(x / STRIDE, y / STRIDE), frames=FRAMES)
            footage.append(render(scene, SIZE[0]))
    return footage


@pytest.fixture(scope="module", params=["rendered", "real"])
def footage(request: pytest.FixtureRequest) -> list[np.ndarray]:
    return rendered_footage() if request.param == "rendered" else real_windows(SIZE)


def mean_measures(clips: list[np.ndarray]) -> np.ndarray:
    return np.mean([list(asdict(measure_clip(clip, 8.0)).values()) for clip in clips], axis=0)


@pytest.fixture(scope="module")
def changes(footage: list[np.ndarray]) -> Changes:
    """By damage: the measures' means at no damage and at each strength, (strengths + 1, measures)."""
    unharmed = mean_measures([clip_of(each) for each in footage])
    return {
        name: np.stack([unharmed, *(mean_measures([damage(each, strength) for each in footage]) for strength in grow)])
        for name, (damage, grow) in DAMAGES.items()
    }


def change(changes: Changes, damage: str, measure: str) -> float:
    values = changes[damage][:, MEASURES.index(measure)]
    return float(values[-1] - values[0])


@pytest.mark.parametrize("measure", MEASURES)
def test_a_measure_moves_with_its_own_damage_step_by_step(measure: str, changes: Changes) -> None:
    for damage, direction in OWN[measure].items():
        steps = direction * np.diff(changes[damage][:, MEASURES.index(measure)])
        assert (steps >= 0).all() and steps.sum() > 0, (damage, steps)


@pytest.mark.parametrize("measure", MEASURES)
def test_a_measure_is_blind_to_the_other_damages(measure: str, changes: Changes) -> None:
    span = max(abs(change(changes, damage, measure)) for damage in OWN[measure])
    for damage in set(DAMAGES) - set(OWN[measure]) - ALSO.get(measure, set()):
        assert abs(change(changes, damage, measure)) < BLIND * span, damage


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
