"""Signatures of clips and their distances: seeds that are alike, move alike, or only differ by noise."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest

from avd.measures.diversity import Signature, appearance_distance, motion_distance, signature
from avd.world import World


def footage(right: float, frames: int = 9, seed: int = 0) -> np.ndarray:
    """A smooth pattern that moves by so many pixels per frame, uint8 (F, 48, 64, 3)."""
    y, x = np.mgrid[:48, :64].astype(np.float64)
    phase = np.random.default_rng(seed).uniform(0, 6, 3)
    shots = [
        np.stack([np.sin((x - n * right) / 5 + a) + np.cos(y / 6 + a) for a in phase], -1) * 50 + 128
        for n in range(frames)
    ]
    return np.stack(shots).round().astype(np.uint8)


def test_equal_clips_have_no_distance_and_it_is_symmetric() -> None:
    a, b = signature(footage(1.0)), signature(footage(0.5, seed=1))
    assert appearance_distance(a, a) == motion_distance(a, a) == 0.0
    assert appearance_distance(a, b) == appearance_distance(b, a) > 0.05
    assert motion_distance(a, b) == motion_distance(b, a) > 0.002


def test_distances_are_in_shares_of_the_range_and_of_the_shorter_side() -> None:
    dark, bright = (signature(np.full((5, 32, 40, 3), level, np.uint8)) for level in (50, 101))
    assert appearance_distance(dark, bright) == pytest.approx(0.2)
    assert motion_distance(dark, bright) == 0.0
    left, right = signature(footage(-1.0)), signature(footage(1.0))
    assert motion_distance(left, right) == pytest.approx(2.0 / 48, rel=0.15)


def test_noise_and_length_hardly_count() -> None:
    clip = footage(1.0, frames=17)
    noisy = np.clip(clip + np.random.default_rng(0).normal(0, 4, clip.shape), 0, 255).astype(np.uint8)
    other = signature(footage(1.0, frames=17, seed=1))
    own = signature(clip)
    assert appearance_distance(own, signature(noisy)) < 0.05 * appearance_distance(own, other)
    assert motion_distance(own, signature(noisy)) < 0.05 * motion_distance(own, signature(footage(-1.0, frames=17)))
    assert motion_distance(own, signature(footage(1.0, frames=9))) < 0.05 * 2 / 48


def test_the_order_of_events_counts() -> None:
    clip = footage(2.0)
    backwards = signature(clip[::-1])
    assert appearance_distance(signature(clip), backwards) > 0.02
    assert motion_distance(signature(clip), backwards) == pytest.approx(4.0 / 48, rel=0.3)


def test_a_signature_is_small_and_survives_json() -> None:
    own = signature(World().clip(0, "heldout").video)
    text = json.dumps(asdict(own))
    assert len(text) < 6000
    again = Signature(**json.loads(text))
    assert appearance_distance(own, again) == motion_distance(own, again) == 0.0


@pytest.mark.parametrize("shape", [(1, 48, 48, 3), (2, 16, 16, 3), (9, 4, 40, 3)])
def test_any_size_has_a_signature(shape: tuple[int, ...]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    own = signature(noise)
    assert len(own.appearance) == 4 * 8 * 8 * 3 and len(own.motion) == 4 * 4 * 4 * 2
    assert np.isfinite(own.motion).all()
