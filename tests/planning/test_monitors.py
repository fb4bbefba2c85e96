"""What monitors take: by a model's size, and as counted on a real run."""

from __future__ import annotations

from dataclasses import replace

import pytest

from avd.models.family import read_facts
from avd.planning.flops import flops_of
from avd.planning.monitors import LARGE_FORWARD, default_teacher_steps


@pytest.mark.parametrize(
    ("model", "steps"),
    [("wan-mini", 50), (WAN := "Wan-AI/Wan2.1-T2V-1.3B-Diffusers", 25), (WAN.replace("1.3B", "14B"), 25)],
)
def test_a_large_model_s_teacher_takes_25_steps(model: str, steps: int) -> None:
    facts = read_facts(model)
    assert facts.settings.steps == 50
    assert default_teacher_steps(facts.settings, facts.sizes) == steps
    few = replace(facts.settings, steps=8)
    assert default_teacher_steps(few, facts.sizes) == 8


def test_small_clips_of_a_large_network_are_cheap() -> None:
    facts = read_facts(WAN)
    small = replace(facts.sizes, latent_CFHW=(16, 3, 16, 16))
    assert flops_of(small).forward < LARGE_FORWARD < flops_of(facts.sizes).forward
    assert default_teacher_steps(facts.settings, small) == 50
