"""The known configs are those of the published models, as far as their classes and counts can tell."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from torch import nn
from transformers import UMT5Config, UMT5EncoderModel

from avd.models.wan import FAMILY
from avd.models.wan.known import KNOWN, NEGATIVE_PROMPT, UMT5_XXL


def hollow(kind: Any, config: Mapping[str, Any]) -> nn.Module:
    with torch.device("meta"):
        return kind(**config)


def billions(network: nn.Module) -> float:
    return sum(p.numel() for p in network.parameters()) / 1e9


@pytest.mark.parametrize(
    ("name", "transformer", "vae"),
    [("wan2.1-1.3b", 1.42, 0.127), ("wan2.1-14b", 14.29, 0.127), ("wan2.2-ti2v-5b", 5.00, 0.705)],
)
def test_sizes_are_the_published_ones(name: str, transformer: float, vae: float) -> None:
    known = KNOWN[name]
    assert billions(hollow(WanTransformer3DModel, known.transformer)) == pytest.approx(transformer, abs=0.005)
    assert billions(hollow(AutoencoderKLWan, known.vae)) == pytest.approx(vae, abs=0.001)


def test_the_text_encoder_is_the_encoder_half_of_umt5_xxl() -> None:
    with torch.device("meta"):
        assert billions(UMT5EncoderModel(UMT5Config(**UMT5_XXL))) == pytest.approx(5.68, abs=0.005)


def test_diffusers_defaults_are_wan21() -> None:
    """Whitening included: the class's defaults are Wan2.1's, and the known configs must not stray from them."""
    given, default = (dict(hollow(AutoencoderKLWan, c).config) for c in (KNOWN["wan2.1-14b"].vae, {}))
    assert len(given["latents_mean"]) == len(given["latents_std"]) == 16
    del given["_use_default_values"], default["_use_default_values"]
    assert given == default
    given, default = (dict(hollow(WanTransformer3DModel, c).config) for c in (KNOWN["wan2.1-14b"].transformer, {}))
    del given["_use_default_values"], default["_use_default_values"]
    assert given == default


def test_whitening_has_a_value_a_channel() -> None:
    for known in KNOWN.values():
        config = hollow(AutoencoderKLWan, known.vae).config
        assert len(config.latents_mean) == len(config.latents_std) == config.z_dim == known.transformer["in_channels"]


def test_the_family_names_the_known_models() -> None:
    """By literals, so that asking which families there are imports no config."""
    assert list(FAMILY.hub_ids) == [known.hub_id for known in KNOWN.values()]


def test_the_negative_prompt_is_the_published_one() -> None:
    """Gaudy colours first and walking backwards last, with 26 phrases between."""
    phrases = NEGATIVE_PROMPT.split("，")
    assert (phrases[0], phrases[1], phrases[-1]) == ("色调艳丽", "过曝", "倒着走") and len(phrases) == 28
