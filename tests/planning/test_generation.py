"""Memory and time of making a video: against real networks on the CPU, by hand, and for the cards that people have."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from avd.models.family import load_model, read_facts, read_parts
from avd.models.settings import Settings
from avd.models.wan.model import VideoModel
from avd.planning.activations import LiveBytes
from avd.planning.flops import flops_of
from avd.planning.generation import HOST_LINK, GenerationPlanner, Sampling
from avd.planning.plan import Machine
from avd.sampling.placement import Placement
from avd.sampling.rollout import FULL

LARGE = "Wan-AI/Wan2.1-T2V-14B-Diffusers"
PLAIN = Placement(offload="none", tiling=False)


def planner_of(name: str, steps: int | None = None) -> GenerationPlanner:
    facts = read_facts(name)
    clip = (facts.settings.frames, facts.settings.height, facts.settings.width)
    return GenerationPlanner(facts.sizes, read_parts(name), Sampling.of(facts.settings, steps), clip)


@pytest.fixture(scope="module")
def large() -> GenerationPlanner:
    return planner_of(LARGE)


def test_a_14b_student_fits_a_card_of_24_gb(large: GenerationPlanner) -> None:
    machine = Machine(memory=24e9)
    assert not large.plan(PLAIN, machine).fits
    plans = large.cheapest(machine)
    found = {(plan.placement.weights, plan.placement.offload, plan.placement.tiling) for plan in plans}
    assert all(plan.fits for plan in plans)
    assert {(None, "blocks", False), ("float8", "none", True)} <= found
    assert large.plan(Placement(offload="none", tiling=True, weights="int8"), Machine(memory=24 * 2**30)).fits
    assert not any(weights is not None and offload == "blocks" for weights, offload, _ in found)  # one is enough
    assert [plan.seconds for plan in plans] == sorted(plan.seconds for plan in plans)


def test_a_large_card_needs_no_option_and_a_small_one_gets_the_nearest(large: GenerationPlanner) -> None:
    (plan,) = large.cheapest(Machine(memory=80e9))
    assert plan.placement == PLAIN and plan.fits
    (plan,) = large.cheapest(Machine(memory=8e9))
    assert not plan.fits and plan.highest.name == "encoding the prompt"


def test_weights_are_those_that_are_published(large: GenerationPlanner) -> None:
    """14.29 billion parameters, of which 99 % are in the blocks, and 5.68 billion of text encoder."""
    machine = Machine(memory=24e9)
    text, denoising, _ = large.plan(PLAIN, machine).stages
    decoder = 0.507e9  # in float32
    assert text.weights == pytest.approx(2 * 5.68e9, rel=0.005)
    assert denoising.weights - decoder == pytest.approx(2 * 14.29e9, rel=0.005)
    (_, small, _) = large.plan(Placement(offload="none", tiling=False, weights="int8"), machine).stages
    assert small.weights - decoder == pytest.approx(14.29e9, rel=0.03)
    (_, waiting, _) = large.plan(Placement(offload="blocks", tiling=False), machine).stages
    assert waiting.weights < decoder + 2 * 14.29e9 / 10 and waiting.host == pytest.approx(2 * 14.29e9, rel=0.005)


def test_options_take_what_they_save(large: GenerationPlanner) -> None:
    machine = Machine(memory=24e9)
    plain, model, tiled = (
        large.plan(placement, machine).stages
        for placement in (PLAIN, Placement(offload="model", tiling=False), Placement(offload="none", tiling=True))
    )
    network = model[2].host
    assert plain[2].weights - model[2].weights == pytest.approx(network)
    assert model[1].seconds - plain[1].seconds == pytest.approx(2 * network / HOST_LINK)
    assert tiled[2].activations < plain[2].activations / 3 and tiled[2].flops > 1.5 * plain[2].flops
    slow = large.plan(Placement(offload="blocks", tiling=False), Machine(memory=24e9, peak_tflops=1e6)).stages[1]
    assert slow.seconds == pytest.approx(4 * slow.host / HOST_LINK, rel=0.02)  # the transfers of four steps


@pytest.mark.parametrize("tiling", [False, True])
def test_decoding_takes_what_the_decoder_allocates(tiling: bool) -> None:
    """Five latent frames, which the plan finds from three and four, of a picture of 2 x 2 tiles."""
    model, small = load_model("wan-mini"), planner_of("wan-mini")
    assert isinstance(model, VideoModel)
    channels, frames = model.latent_shape()[:2]
    planner = replace(
        small, sizes=replace(small.sizes, latent_CFHW=(channels, frames, 40, 32)), clip=(small.clip[0], 320, 256)
    )
    latents, model.vae.use_tiling = torch.zeros(1, channels, frames, 40, 32), tiling
    with torch.no_grad(), LiveBytes([*model.vae.parameters(), *model.vae.buffers(), latents]) as live:
        model.vae.decode(latents)
    _, denoising, decoding = planner.plan(Placement(offload="none", tiling=tiling), Machine()).stages
    held = decoding.activations - planner._batch()
    assert held == pytest.approx(live.peak, rel=0.1 if tiling else 0.02)
    assert decoding.weights == denoising.weights > 4 * sum(p.numel() for p in model.vae.parameters())


@pytest.mark.parametrize(
    ("settings", "steps", "expected"),
    [
        (
            Settings(student_timesteps=(1000, 900, 700, 500), half_rate_stages=2),
            None,
            Sampling(((2, 1), (2, 1), FULL, FULL)),
        ),
        (Settings(), None, Sampling((FULL,) * 4)),
        (Settings(), 3, Sampling((FULL,) * 3, guided=True)),
        (Settings(guidance=1.0), 3, Sampling((FULL,) * 3)),
    ],
)
def test_steps_are_those_of_the_model(settings: Settings, steps: int | None, expected: Sampling) -> None:
    assert Sampling.of(settings, steps) == expected


def test_strides_of_denoising_are_compared_at_wans_true_sizes() -> None:
    """32,760 tokens, 17,160 at half rate, 4,290 at half rate and resolution; attention grows with their square."""
    planner = planner_of("Wan-AI/Wan2.1-T2V-1.3B-Diffusers")
    machine = Machine(peak_tflops=1000.0, mfu=0.5)
    found = planner.denoising_by_strides(machine)
    sizes = planner.sizes
    full, half, both = (flops_of(sizes, strides).forward for strides in (FULL, (2, 1), (2, 2)))
    assert found == pytest.approx(
        {
            "full": 4 * full / 5e14,
            "half rate": (2 * half + 2 * full) / 5e14,
            "half rate and resolution": (2 * both + 2 * full) / 5e14,
        }
    )
    assert found["full"] / found["half rate"] == pytest.approx(1.5, abs=0.05)
    assert found["full"] / found["half rate and resolution"] == pytest.approx(1.9, abs=0.05)
    assert list(planner_of("wan-mini").denoising_by_strides(machine)) == ["full", "half rate"]  # 6 x 6 do not halve
    assert planner_of("wan-mini", 4).denoising_by_strides(machine) == {}


def test_guidance_and_half_rate_are_counted() -> None:
    machine = Machine()
    four, guided = (planner_of("wan-mini", steps).plan(PLAIN, machine).stages[1] for steps in (None, 4))
    assert guided.flops == 2 * four.flops and guided.activations > four.activations
