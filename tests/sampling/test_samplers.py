"""A many-step model's sampler: what guidance leads away from."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from avd.sampling.choose import make_sampler
from avd.types import UserError
from helpers.tiny import tiny_model


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


def test_a_student_takes_none() -> None:
    model = tiny_model()
    model.settings = replace(model.settings, student_timesteps=(1000.0, 500.0))
    with pytest.raises(UserError, match="leave --negative-prompt out"):
        make_sampler(model, negative_prompt="gaudy")
