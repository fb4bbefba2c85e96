"""What preparing clips takes: against torch's own count of real encoders, and for the GPUs that share the work."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from avd.models.family import load_model, read_facts, read_parts
from avd.planning.plan import Machine
from avd.planning.preparation import Preparation, plan_preparation


def planned(machine: Machine, frames: int = 17, cached: int | None = None) -> Preparation:
    """For clips of wan-mini of `frames` frames, of a size of their own."""
    facts = read_facts("wan-mini")
    shape = (facts.sizes.latent_CFHW[0], (frames - 1) // 4 + 1, 4, 8)
    settings = replace(facts.settings, frames=frames, height=32, width=64)
    return plan_preparation(read_parts("wan-mini"), replace(facts.sizes, latent_CFHW=shape), settings, machine, cached)


def counted(run: Callable[[], object]) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


@pytest.mark.parametrize("frames", [1, 9, 29])
def test_operations_are_those_of_the_encoders(frames: int) -> None:
    """29 frames, 8 latent ones, are extrapolated."""
    model, found = load_model("wan-mini"), planned(Machine(), frames)
    video = np.zeros((1, frames, 32, 64, 3), np.uint8)
    assert found.clip.flops == counted(lambda: model.encode_video(video)) > 0
    assert found.caption.flops == counted(lambda: model.encode_prompts(["a red square rises"])) > 0


def test_gpus_share_the_clips_at_the_rates_of_their_precisions() -> None:
    one, eight = (planned(Machine(gpus, mfu=0.5, peak_tflops=10.0), cached=400) for gpus in (1, 8))
    assert one.clip.seconds == eight.clip.seconds == pytest.approx(2 * one.clip.flops / 5e12)  # in TF32
    assert one.caption.seconds == pytest.approx(one.caption.flops / 5e12)
    assert one.seconds_of(1000) == pytest.approx(1000 * (one.clip.seconds + one.caption.seconds))
    assert eight.seconds_of(1000) == pytest.approx(one.seconds_of(1000) / 8)
    found = eight.to_json()
    assert found["seconds_per_1000"] == pytest.approx(2.5 * found["cached_seconds"]) and found["cached"] == 400


def test_without_a_cache_no_clips_are_counted() -> None:
    found = planned(Machine()).to_json()
    assert found["cached"] is None and found["cached_seconds"] is None and found["seconds_per_1000"] > 0
