"""What monitors take: by a model's size, and as counted on a real run."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from avd.models.family import read_facts
from avd.models.settings import Settings
from avd.models.sizes import Sizes
from avd.planning.flops import flops_of
from avd.planning.monitors import LARGE_FORWARD, MonitorPlan, default_teacher_steps, plan_monitors
from avd.planning.plan import Machine, Planner
from helpers.real_cycles import make_task, recipe_for
from helpers.tiny import tiny_model


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


# -- what they take -----------------------------------------------------------------------------------------------


def planned(gpus: int, *overrides: str, sizes: Sizes | None = None, settings: Settings | None = None) -> MonitorPlan:
    facts = read_facts(WAN)
    plan = Planner(sizes or facts.sizes).plan(recipe_for("compute.device=auto", *overrides), Machine(gpus))
    found = plan_monitors(plan, settings or facts.settings)
    assert found is not None
    return found


def test_a_run_without_monitors_has_none() -> None:
    facts = read_facts("wan-mini")
    plan = Planner(facts.sizes).plan(recipe_for("monitors.every=0"), Machine())
    assert plan_monitors(plan, facts.settings) is None
    assert not any(moment.name.startswith("monitors") for moment in plan.moments)


def test_forwards_and_times() -> None:
    found = planned(4, "training.batch=8", "monitors.clips=10", "monitors.every=40", "training.updates=100")
    assert (found.clips_per_rank, found.teacher_steps, found.measurements) == (3, 25, 3)  # after 40, 80 and 100
    assert found.references.forwards == 12 * 25 * 2 and found.measurement.forwards == 12 * 4
    forward = flops_of(read_facts(WAN).sizes).forward
    assert found.references.flops == found.references.forwards * forward
    assert found.references.seconds == pytest.approx(found.references.flops / (4 * 0.4 * 67e12))
    more = planned(8, "training.batch=8", "monitors.clips=10", "compute.context=2")
    assert (more.clips_per_rank, more.references.seconds) == (3, found.references.seconds / 2)
    explicit = planned(4, "training.batch=8", "monitors.clips=10", "monitors.teacher_steps=5")
    assert explicit.references.forwards == 12 * 5 * 2


def test_further_seeds_are_videos_too() -> None:
    """Student and teacher make them, of no more prompts than there are; with the suite `pixels` there are none."""
    native = ("monitors.clips=10", "monitors.suite=native", "monitors.diversity_seeds=3")
    few = planned(4, "training.batch=8", *native, "monitors.diversity_prompts=3")
    assert (few.clips, few.clips_per_rank) == (16, 4)
    assert few.references.forwards == 16 * 25 * 2 and few.measurement.forwards == 16 * 4
    assert planned(4, "training.batch=8", *native, "monitors.diversity_prompts=99").clips == 30
    assert planned(4, "training.batch=8", *native, "monitors.diversity_prompts=0").clips == 10
    assert planned(4, "training.batch=8", *native, "monitors.suite=pixels").clips == 10


def test_the_share_is_of_the_time_of_the_run() -> None:
    recipe = ("training.batch=8", "monitors.every=1", "training.updates=7")
    plan = Planner(read_facts(WAN).sizes).plan(recipe_for("compute.device=auto", *recipe), Machine(8))
    found = planned(8, *recipe)
    watching = found.references.seconds + 7 * found.measurement.seconds
    assert found.share == pytest.approx(watching / (watching + 7 * plan.seconds))


def test_memory_is_that_of_the_parts_that_training_computes() -> None:
    """And stays below training's, whatever the number of clips."""
    few, many = (planned(1, "training.batch=4", "compute.microbatch=1", f"monitors.clips={n}") for n in (1, 64))
    assert few.peak == many.peak
    plan = Planner(read_facts(WAN).sizes).plan(
        recipe_for("compute.device=auto", "training.batch=4", "compute.microbatch=1"), Machine()
    )
    assert plan.resident.total < few.peak < plan.peak
    assert planned(1, "training.batch=4").peak > few.peak


def test_operations_are_those_of_real_videos() -> None:
    recipe, model = recipe_for("training.batch=2", "monitors.clips=2"), tiny_model()
    task = make_task(recipe, model)
    noise, prompts = torch.randn(2, *model.latent_shape()), task.data.prompts.prompts([0, 1])
    found = planned(1, "training.batch=2", "monitors.clips=2", sizes=model.sizes, settings=model.settings)
    sampler = task.sampler()
    for expected, make in (
        (found.references.flops, lambda: sampler.teacher(noise, prompts, sampler.default_teacher_steps)),
        (found.measurement.flops, lambda: sampler.student(noise, prompts, lambda stage: noise)),
    ):
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            make()
        assert counter.get_total_flops() == pytest.approx(expected, rel=1e-9)
