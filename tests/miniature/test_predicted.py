"""Clips that a student predicts, to train its interpolator on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from avd.engine.randomness import UpdateRandom, derive_seed
from avd.miniature.predicted import last_strided_stage, open_predictor, predict_clips
from avd.models.settings import Settings
from avd.models.wan.model import VideoModel
from avd.types import UserError
from helpers.tiny import LATENT_SHAPE, tiny_model, tiny_source

TIMESTEPS = (1000.0, 900.0, 757.0, 522.0)


def student() -> VideoModel:
    model = tiny_model()
    model.settings = replace(model.settings, student_timesteps=TIMESTEPS, half_rate_stages=2)
    return model


def test_a_clip_is_the_full_prediction_at_the_last_half_rate_stage() -> None:
    """x0 of the first stage from pure noise, noised to the second stage, x0 of that; clip by clip, by hand."""
    model, source = student(), tiny_source(tiny_model(), count=18)
    found = predict_clips(model, source, 18, seed=3)
    assert found.captions == source.captions
    network, i = model.velocity().eval(), 17  # in the second batch, of two clips
    random = UpdateRandom(derive_seed(3, "interpolator", "predicted"), 0, range(i, i + 1))
    noise, eps = (random.normal("rollout", stage, shape=LATENT_SHAPE) for stage in ("start", 1))
    with torch.no_grad():
        x0 = noise - network(noise, torch.tensor([1.0]), source.prompts([i]))
        x = 0.1 * x0 + 0.9 * eps
        x0 = x - 0.9 * network(x, torch.tensor([0.9]), source.prompts([i]))
    torch.testing.assert_close(found.latents([i]), x0, rtol=2e-3, atol=2e-3)  # half precision
    torch.testing.assert_close(found.prompts([i])["embedding"], source.prompts([i])["embedding"])


def test_another_seed_and_another_prompt_are_other_clips() -> None:
    model, source = student(), tiny_source(tiny_model(), count=3)
    clips = predict_clips(model, source, 3, seed=0).latents(range(3))
    assert torch.equal(clips, predict_clips(model, source, 3, seed=0).latents(range(3)))
    assert not torch.equal(clips, predict_clips(model, source, 3, seed=1).latents(range(3)))
    assert not torch.equal(clips[0], clips[1])


@pytest.mark.parametrize(
    ("settings", "stage"),
    [
        (Settings(student_timesteps=TIMESTEPS), 1),
        (Settings(student_timesteps=TIMESTEPS, half_rate_stages=1), 0),
        (Settings(student_timesteps=TIMESTEPS, half_rate_stages=1, half_resolution_stages=3), 2),
    ],
)
def test_the_last_stage_is_the_students_own(settings: Settings, stage: int) -> None:
    assert last_strided_stage(settings) == stage


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "a many-step model: name a student's folder or its run"),
        ({"student_timesteps": (1000.0,)}, "has one step"),
        ({"student_timesteps": TIMESTEPS, "transition": "euler"}, "takes Euler steps"),
    ],
)
def test_a_model_without_strided_stages_is_refused(changes: dict[str, object], words: str, tmp_path: Path) -> None:
    model = tiny_model()
    model.settings = replace(model.settings, **changes)  # type: ignore[arg-type]
    model.save(tmp_path / "student")
    for name in (tmp_path, tmp_path / "student"):  # a run, and its student
        with pytest.raises(UserError, match=words):
            open_predictor(str(name))
