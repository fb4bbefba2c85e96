"""A many-step model's sampler: what guidance leads away from. A student's: how it goes from stage to stage."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from diffusers import WanPipeline
from torch import Tensor

from avd.flow import integrate
from avd.models.family import load_model
from avd.models.streams import stream
from avd.models.wan.model import VideoModel
from avd.models.weights import MemoryWeights
from avd.sampling.choose import make_sampler
from avd.types import UserError
from helpers.tiny import LATENT_SHAPE, tiny_interpolator, tiny_model


def sample(negative_prompt: str | None, own: str = "") -> Tensor:
    model = tiny_model()
    model.settings = replace(model.settings, negative_prompt=own)
    sampler = make_sampler(model, steps=2, guidance=3.0, negative_prompt=negative_prompt)
    return sampler(["a red square"], torch.Generator().manual_seed(0))


def test_guidance_leads_away_from_the_models_negative_prompt_or_another() -> None:
    null, blue = sample(None), sample("a blue ball")
    assert not torch.equal(null, blue)
    assert torch.equal(sample(None, own="a blue ball"), blue)
    assert torch.equal(sample("", own="a blue ball"), null)


def test_the_negative_prompt_is_part_of_a_samplers_identity_and_description() -> None:
    model = tiny_model()
    own, other = (make_sampler(model, steps=2, negative_prompt=text) for text in (None, "gaudy"))
    assert own.identity != other.identity
    assert (own.description["negative_prompt"], other.description["negative_prompt"]) == ("", "gaudy")


def test_half_resolution_is_another_path_of_a_student(tmp_path: Path) -> None:
    model = tiny_model()
    model.settings = replace(model.settings, height=32, width=32, student_timesteps=(1000.0, 500.0))
    tiny_interpolator(space=True).save(tmp_path / "interpolator")
    model.save(tmp_path)
    student = load_model(str(tmp_path))

    def sample(**options: bool) -> Tensor:
        return make_sampler(student, **options)(["a red square"], torch.Generator().manual_seed(0))

    full, half = sample(), sample(half_resolution=True)
    assert full.shape == half.shape == (1, 12, 5, 4, 4) and not torch.allclose(full, half)
    assert torch.equal(sample(half_resolution=False, half_rate=False), full)
    assert not torch.allclose(sample(half_resolution=True, half_rate=True), half)
    few = make_sampler(student, half_resolution=True)
    assert few.description["half_resolution_stages"] == 1 and few.network_calls == 2
    assert few.identity != make_sampler(student).identity


def test_half_resolution_is_refused_where_it_cannot_be(tmp_path: Path) -> None:
    model = tiny_model()
    with pytest.raises(UserError, match="leave --half-resolution out"):
        make_sampler(model, half_resolution=True)
    model.settings = replace(model.settings, student_timesteps=(1000.0, 500.0))
    with pytest.raises(UserError, match="multiples of 32 pixels"):
        make_sampler(model, half_resolution=True)
    model.settings = replace(model.settings, height=32, width=32)
    with pytest.raises(UserError, match=r"no interpolator/, which half resolution needs"):
        make_sampler(model, half_resolution=True)
    model.settings = replace(model.settings, transition="euler")
    with pytest.raises(UserError, match="Euler steps, which are at full resolution only"):
        make_sampler(model, half_resolution=True)
    model.settings = replace(model.settings, transition="renoise")
    tiny_interpolator().save(tmp_path / "interpolator")
    model.save(tmp_path)
    with pytest.raises(UserError, match="fills in frames alone"):
        make_sampler(load_model(str(tmp_path)), half_resolution=True)


def test_a_student_takes_none() -> None:
    model = tiny_model()
    model.settings = replace(model.settings, student_timesteps=(1000.0, 500.0))
    with pytest.raises(UserError, match="leave --negative-prompt out"):
        make_sampler(model, negative_prompt="gaudy")


def student(**settings: object) -> VideoModel:
    model = tiny_model()
    model.settings = replace(model.settings, student_timesteps=(1000.0, 700.0, 300.0), **settings)  # type: ignore[arg-type]
    return model


def test_a_students_transition_is_its_settings_and_part_of_its_identity_and_description() -> None:
    samplers = [make_sampler(student(transition=transition)) for transition in ("renoise", "euler")]
    assert [each.description["transition"] for each in samplers] == ["renoise", "euler"]
    assert samplers[0].identity != samplers[1].identity
    renoised, euler = (each(["a red square"], torch.Generator().manual_seed(0)) for each in samplers)
    assert not torch.allclose(renoised, euler, atol=0.1)
    model, noise = student(), torch.randn(1, *LATENT_SHAPE, generator=torch.Generator().manual_seed(0))
    prompt, levels = model.encode_prompts(["a red square"]), torch.tensor([1.0, 0.7, 0.3, 0.0], dtype=torch.float64)
    expected = integrate(lambda x, s: model.velocity()(x, s, prompt), noise, levels)
    torch.testing.assert_close(euler, expected, rtol=0, atol=1e-5)


def test_a_student_of_euler_steps_has_no_half_rate() -> None:
    assert make_sampler(student(transition="euler"), half_rate=False).network_calls == 3
    with pytest.raises(UserError, match="takes Euler steps, which are at full rate only: leave --half-rate out"):
        make_sampler(student(transition="euler"), half_rate=True)


@pytest.mark.parametrize("transition", ["renoise", "euler"])
def test_stock_diffusers_samples_a_students_folder_as_it_is_meant(transition: str, tmp_path: Path) -> None:
    """Its scheduler is in the folder; the noise levels, which are the student's timesteps, are given to it."""
    weights = stream(MemoryWeights(tiny_model().transformer.state_dict()))
    tiny_model().save(tmp_path / "s", weights, student_timesteps=(1000.0, 700.0, 300.0), transition=transition)
    pipeline = WanPipeline.from_pretrained(tmp_path / "s", dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler.set_timesteps = partial(pipeline.scheduler.set_timesteps, sigmas=[1.0, 0.7, 0.3])
    torch.manual_seed(5)
    stock = pipeline(
        "a red square",
        height=16,
        width=16,
        num_frames=17,
        num_inference_steps=3,
        guidance_scale=1.0,
        max_sequence_length=load_model(str(tmp_path / "s")).text_length,
        output_type="latent",
    ).frames
    ours = make_sampler(load_model(str(tmp_path / "s")))(["a red square"], torch.Generator().manual_seed(5))
    torch.testing.assert_close(ours, stock, rtol=0, atol=1e-4)
