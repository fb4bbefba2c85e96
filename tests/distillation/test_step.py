"""One cycle of distillation: what it costs, whom it changes, and what it does when a number is not finite."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from avd.distillation.step import Batch
from avd.objectives.fake_score import FakeScoreLoss
from avd.objectives.term import Sample, Stateless
from avd.sampling.rollout import Rollout
from avd.types import Conditions, LossTerm
from helpers.cycles import BATCH, INTERPOLATOR, Cycle, make_batch, make_cycle, networks, random_for_exit, update_random
from helpers.tiny import LATENT_SHAPE


def copies(**networks: nn.Module) -> dict[str, dict[str, Tensor]]:
    return {name: {k: v.clone() for k, v in network.state_dict().items()} for name, network in networks.items()}


def changed(cycle: Cycle, before: Mapping[str, Mapping[str, Tensor]]) -> set[str]:
    after = copies(**networks(cycle))
    return {name for name in before if any(not torch.equal(v, after[name][k]) for k, v in before[name].items())}


@contextmanager
def counted(cycle: Cycle) -> Iterator[Counter[str]]:
    """Forwards of the real transformers, in full batches: a doubled batch counts two, and so does a backward.

    A backward is counted where it passes, not where it might.
    """
    cost: Counter[str] = Counter()
    handles = []
    for name, network in networks(cycle).items():

        def count(module: nn.Module, args: tuple[Any, ...], output: tuple[Tensor], name: str = name) -> None:
            units = len(args[0]) // BATCH
            cost[name] += units
            if output[0].requires_grad:
                output[0].register_hook(lambda gradient: cost.update({name: 2 * units}))

        handles.append(network.transformer.register_forward_hook(count))
    yield cost
    for handle in handles:
        handle.remove()


# -- cost ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("exit_stage", range(4))
@pytest.mark.parametrize("half_rate_stages", [0, 2])
def test_a_cycle_with_a_shared_rollout_costs_at_most_27_forwards(exit_stage: int, half_rate_stages: int) -> None:
    cycle = make_cycle("rollout.shared=true", f"rollout.half_rate_stages={half_rate_stages}")
    with counted(cycle) as cost:
        metrics = cycle.run(make_batch(cycle.recipe), random_for_exit(exit_stage))
    assert metrics["exit_stage"] == exit_stage
    assert cost == {
        "student": exit_stage + 3 + 3,  # stages before the exit, the exit, regression
        "teacher": 2,  # CFG
        "fake_score": 1 + 5 * 3,
    }
    assert cost.total() == 24 + exit_stage <= 27


def test_a_cycle_with_fresh_rollouts_costs_at_most_36_forwards_on_average(monkeypatch: pytest.MonkeyPatch) -> None:
    cycle = make_cycle("rollout.shared=false")
    exits: list[int] = []
    run_until = Rollout.run_until

    def recorded(self: Rollout, student: Any, noise: Tensor, prompt: Conditions, renoise: Any, stage: int) -> Tensor:
        exits.append(stage)
        return run_until(self, student, noise, prompt, renoise, stage)

    monkeypatch.setattr(Rollout, "run_until", recorded)
    for seed in range(4):
        exits.clear()
        with counted(cycle) as cost:
            cycle.run(make_batch(cycle.recipe), update_random(seed))
        assert len(exits) == 5
        assert cost.total() == 28 + sum(exits)  # 35.5 on average, as exits are uniform over 0 to 3: the next test


def test_exits_are_uniform() -> None:
    exits = Counter(update_random(n).shared_integer("rollout", 0, "exit", high=4) for n in range(2000))
    assert set(exits) == {0, 1, 2, 3}
    assert all(abs(count - 500) < 5 * (2000 * 0.25 * 0.75) ** 0.5 for count in exits.values())


def levels_of(cycle: Cycle, update: int) -> tuple[list[float], list[float]]:
    """Noise levels at which the student is called without a gradient, and those at which with one."""
    found: dict[bool, list[float]] = {True: [], False: []}
    student = cycle.roles.student.network

    def note(module: nn.Module, args: tuple[Any, ...]) -> None:
        found[torch.is_grad_enabled()] += args[1].unique().tolist()

    handle = student.register_forward_pre_hook(note)  # type: ignore[attr-defined]
    cycle.run(make_batch(cycle.recipe), update_random(update))
    handle.remove()
    return found[False], found[True]


def test_drawn_levels_are_a_rollouts_own_and_real_data_keep_to_the_timesteps() -> None:
    drawn, fixed = make_cycle("rollout.drawn_shift=5.0"), make_cycle()
    deep = [n for n in range(60) if update_random(n).shared_integer("rollout", 0, "exit", high=4) == 3][:2]
    paths = []
    for update in deep:
        before, at_exit = levels_of(drawn, update)
        again, _ = levels_of(make_cycle("rollout.drawn_shift=5.0"), update)
        assert before == again and before[0] == 1.0 and len(before) == 3
        path = [*before, at_exit[0]]
        assert path == sorted(path, reverse=True)
        assert {round(sigma, 3) for sigma in at_exit[1:]} <= {1.0, 0.9, 0.757, 0.522}
        assert levels_of(fixed, update)[0] == pytest.approx([1.0, 0.9, 0.757])
        paths.append(path)
    assert not set(paths[0][1:]) & set(paths[1][1:])


def test_fresh_rollouts_draw_levels_of_their_own() -> None:
    unshared = make_cycle("rollout.drawn_shift=5.0", "rollout.shared=false", "fake_score.updates=4")
    without, _ = levels_of(unshared, 0)
    assert len(set(without)) > 3


def test_what_has_no_weight_costs_no_forward() -> None:
    def run(*overrides: str) -> tuple[Counter[str], dict[str, float]]:
        cycle = make_cycle(*overrides)
        with counted(cycle) as cost:
            metrics = cycle.run(make_batch(cycle.recipe), random_for_exit(0))
        return cost, metrics

    full, _ = run()
    plain, metrics = run("objective.regression.weight=0")
    assert plain + Counter(student=3) == full
    assert not any(name.startswith("regression") for name in metrics)
    still, metrics = run("objective.temporal.weight=0")
    assert still == full  # the temporal term reads samples that are there anyway
    assert not any(name.startswith("temporal") for name in metrics)
    unmatched, metrics = run("objective.distribution_matching.weight=0")
    assert unmatched + Counter(teacher=2, fake_score=16) == full  # nothing asks for a fake score
    assert not any("distribution_matching" in name or "fake_score" in name for name in metrics)
    unjudged, _ = run("objective.distribution_matching.weight=0", "objective.temporal.weight=0")
    assert unjudged == Counter(student=3)  # nor, then, for a rollout
    unguided, _ = run("objective.distribution_matching.guidance=1")
    assert unguided + Counter(teacher=1) == full


def test_a_term_that_starts_later_costs_and_changes_nothing_before() -> None:
    late = ("objective.distribution_matching.start=5", "objective.temporal.start=5")
    cycle = make_cycle(*late, "fake_score.ida=0.9")
    without = make_cycle("objective.distribution_matching.weight=0", "objective.temporal.weight=0")
    batch, before = make_batch(cycle.recipe), copies(**networks(cycle))
    with counted(cycle) as cost:
        metrics = cycle.run(batch, update_random(4))
    expected = without.run(make_batch(without.recipe), update_random(4))
    assert cost == Counter(student=3) and changed(cycle, before) == {"student", "average"}
    assert {name: value for name, value in metrics.items() if name != "skipped_fake_score"} == expected


def test_from_its_start_on_a_term_acts_as_ever() -> None:
    late, ever = make_cycle("objective.distribution_matching.start=5", "objective.temporal.start=5"), make_cycle()
    batch = make_batch(ever.recipe)
    assert late.run(batch, update_random(5)) == ever.run(batch, update_random(5))
    for name, network in networks(ever).items():
        for a, b in zip(network.parameters(), networks(late)[name].parameters(), strict=True):
            assert torch.equal(a, b)


def test_a_term_in_every_second_update_costs_and_changes_nothing_in_the_others() -> None:
    seldom, without, ever = (
        make_cycle(*changes) for changes in (("objective.regression.every=2",), ("objective.regression.weight=0",), ())
    )
    for update, other in ((1, without), (2, ever)):
        expected = other.run(make_batch(other.recipe), update_random(update))
        fresh = make_cycle("objective.regression.every=2")
        assert fresh.run(make_batch(fresh.recipe), update_random(update)) == expected
    with counted(seldom) as cost:
        seldom.run(make_batch(seldom.recipe), update_random(1))
    with counted(without) as cheaper:
        without.run(make_batch(without.recipe), update_random(1))
    assert cost == cheaper and not seldom.means.seen_S.any()


# -- who changes --------------------------------------------------------------------------------------------------


def test_a_student_update_changes_the_student_its_average_and_the_loss_cache() -> None:
    cycle = make_cycle()
    before = copies(**networks(cycle))
    cycle.update_student(make_batch(cycle.recipe), update_random(0))
    assert changed(cycle, before) == {"student", "average"}
    assert cycle.means.seen_S.any()
    assert all(p.grad is None for network in networks(cycle).values() for p in network.parameters())


def test_a_fake_score_update_changes_the_fake_score_alone() -> None:
    cycle = make_cycle()
    batch = make_batch(cycle.recipe)
    before = copies(**networks(cycle))
    sample = batch.latents_BCFHW.clone().requires_grad_()
    cycle.update_fake_score([sample], batch, update_random(), 0)
    assert changed(cycle, before) == {"fake_score"}
    assert sample.grad is None and not cycle.means.seen_S.any()


def test_the_teacher_and_the_interpolator_never_change_and_never_receive_gradient() -> None:
    cycle = make_cycle("rollout.half_rate_stages=2", "rollout.shared=false")
    before = copies(teacher=cycle.roles.teacher, interpolator=INTERPOLATOR)
    touched: list[str] = []
    for name, network in (("teacher", cycle.roles.teacher), ("interpolator", INTERPOLATOR)):
        assert not any(p.requires_grad for p in network.parameters())
        for p in network.parameters():
            p.requires_grad_()  # so that a gradient would show if the cycle let one through
            p.register_hook(lambda gradient, name=name: touched.append(name))
    for exit_stage in range(2):
        cycle.run(make_batch(cycle.recipe), random_for_exit(exit_stage))
    assert "teacher" not in touched and all(p.grad is None for p in cycle.roles.teacher.parameters())
    for name, network in (("teacher", cycle.roles.teacher), ("interpolator", INTERPOLATOR)):
        network.requires_grad_(False).zero_grad(set_to_none=True)
        assert all(torch.equal(v, before[name][k]) for k, v in network.state_dict().items())


@pytest.mark.parametrize("shared", [True, False])
def test_samples_are_denoised_with_the_prompts_they_were_made_from(shared: bool) -> None:
    cycle = make_cycle(f"rollout.shared={str(shared).lower()}", "objective.regression.weight=0")
    batch = make_batch(cycle.recipe)
    prompts_of: dict[str, list[Tensor]] = {"student": [], "fake_score": []}
    for name, prompts in prompts_of.items():
        networks(cycle)[name].register_forward_pre_hook(
            lambda module, args, prompts=prompts: prompts.append(args[2]["embedding"])
        )
    cycle.run(batch, random_for_exit(0))

    def places(prompts: list[Tensor]) -> list[int]:
        own = [each["embedding"] for each in batch.rollout_prompts]
        return [next(i for i, p in enumerate(own) if torch.equal(p, prompt)) for prompt in prompts]

    # The fake score is asked once for the student's update and once in each of its own.
    assert places(prompts_of["fake_score"]) == ([0] * 6 if shared else [0, 0, 1, 2, 3, 4])
    assert list(dict.fromkeys(places(prompts_of["student"]))) == ([0] if shared else [0, 1, 2, 3, 4])


# -- robustness and schedule --------------------------------------------------------------------------------------


@pytest.mark.parametrize("shared", ["true", "false"])
def test_samples_of_paired_rollouts_come_with_the_clips_of_their_prompts(
    shared: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Part by part, to the terms and to what the auxiliaries learn."""
    cycle = make_cycle(f"rollout.shared={shared}", "compute.microbatch=2", recipe="dmd")
    clips = [torch.full((BATCH, *LATENT_SHAPE), float(i)) for i in range(cycle.step.method.rollouts)]
    clips = [each + torch.arange(BATCH).view(-1, 1, 1, 1, 1) / 10 for each in clips]
    batch = replace(make_batch(cycle.recipe), rollout_latents=tuple(clips))
    judged, learnt = list[Tensor](), list[Tensor]()
    term, loss = cycle.step.terms["distribution_matching"], FakeScoreLoss.__call__

    def judging(sample: Sample) -> LossTerm:
        judged.append(sample.x0_BCFHW)
        return term(sample)

    def learning(self: FakeScoreLoss, sample: Sample, *rest: Any) -> LossTerm:
        learnt.append(sample.x0_BCFHW)
        return loss(self, sample, *rest)

    cycle.step.terms["distribution_matching"] = Stateless(judging)
    monkeypatch.setattr(FakeScoreLoss, "__call__", learning)
    cycle.run(batch, random_for_exit(1))
    assert torch.equal(torch.cat(judged), clips[0])
    rounds = [clips[0]] * 5 if shared == "true" else clips
    assert torch.equal(torch.cat(learnt), torch.cat(rounds))


def poisoned(batch: Batch, part: str) -> Batch:
    latents, prompts = batch.latents_BCFHW.clone(), [p["embedding"].clone() for p in batch.rollout_prompts]
    if part == "video":
        latents[0, 0, 0] = torch.nan
    else:
        prompts[0][0, 0] = torch.inf
    return replace(batch, latents_BCFHW=latents, rollout_prompts=tuple(Conditions({"embedding": p}) for p in prompts))


def test_a_bad_video_costs_a_student_update_and_no_more() -> None:
    cycle = make_cycle()
    batch = make_batch(cycle.recipe)
    before = copies(**networks(cycle))
    metrics = cycle.run(poisoned(batch, "video"), update_random(0))
    assert (metrics["skipped_student"], metrics["skipped_fake_score"]) == (1, 0)
    assert changed(cycle, before) == {"fake_score"}
    assert cycle.means.mean_S.isfinite().all()
    assert not cycle.roles.student.optimizer.state
    metrics = cycle.run(batch, update_random(1))
    assert (metrics["skipped_student"], metrics["skipped_fake_score"]) == (1, 0)
    assert {"student", "average"} <= changed(cycle, before)
    assert all(v.isfinite().all() for network in networks(cycle).values() for v in network.state_dict().values())


def test_a_bad_sample_is_learnt_by_nobody() -> None:
    cycle = make_cycle()
    batch = make_batch(cycle.recipe)
    before = copies(**networks(cycle))
    metrics = cycle.run(poisoned(batch, "prompt"), update_random(0))
    assert (metrics["skipped_student"], metrics["skipped_fake_score"]) == (1, 5)
    assert changed(cycle, before) == set()
    assert cycle.run(batch, update_random(1))["skipped_fake_score"] == 5
    assert changed(cycle, before) == {"student", "average", "fake_score"}


def test_warmup_counts_steps_taken() -> None:
    cycle = make_cycle("student.optimizer.warmup=4", "student.optimizer.learning_rate=4e-5")
    batch = make_batch(cycle.recipe)
    rates = []
    for n, spoil in enumerate([False, True, False, False, False, False]):
        cycle.run(poisoned(batch, "video") if spoil else batch, update_random(n))
        rates.append(cycle.roles.student.optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([1e-5, 2e-5, 2e-5, 3e-5, 4e-5, 4e-5])
    unwarmed = cycle.recipe.fake_score.optimizer.learning_rate
    assert cycle.roles.learned["fake_score"].optimizer.param_groups[0]["lr"] == unwarmed


def test_the_gradient_is_clipped(monkeypatch: pytest.MonkeyPatch) -> None:
    cycle = make_cycle("student.optimizer.clip=0.01")
    norms = []
    student = cycle.roles.student

    def step() -> None:
        norms.append(torch.cat([p.grad.flatten() for p in student.network.parameters()]).norm().item())

    monkeypatch.setattr(student.optimizer, "step", step)
    metrics = cycle.run(make_batch(cycle.recipe), update_random(0))
    assert norms == pytest.approx([0.01], rel=1e-3)
    assert metrics["student_grad_norm"] > 0.01


# -- the regression branch ----------------------------------------------------------------------------------------


def regression_calls(cycle: Cycle, seed: int) -> tuple[tuple[int, ...], list[float], int]:
    """Shape, noise levels and stride that the student saw in its regression: its last call of a cycle."""
    seen: list[tuple[tuple[int, ...], list[float], int]] = []

    def record(module: nn.Module, args: tuple[Tensor, ...], options: dict[str, Any], output: Tensor) -> None:
        seen.append((tuple(args[0].shape), args[1].tolist(), options.get("frame_stride", 1)))

    handle = cycle.roles.student.network.register_forward_hook(record, with_kwargs=True)
    cycle.run(make_batch(cycle.recipe), update_random(seed))
    handle.remove()
    return seen[-1]


def test_the_loss_cache_is_kept_per_timestep() -> None:
    cycle = make_cycle()
    sigmas = [1.0, 0.9, 0.757, 0.522]
    met: set[int] = set()
    for seed in range(4):
        before = cycle.means.mean_S.clone()
        _, levels, _ = regression_calls(cycle, seed)
        moved = {min(range(4), key=lambda i: abs(sigmas[i] - level)) for level in levels}
        met |= moved
        assert {i for i in range(4) if cycle.means.mean_S[i] != before[i]} == moved
        assert {i for i in range(4) if cycle.means.seen_S[i]} == met


def test_plain_regression_keeps_no_cache() -> None:
    cycle = make_cycle("objective.regression.adaptive=false")
    metrics = cycle.run(make_batch(cycle.recipe), update_random(0))
    assert metrics["regression_weight"] == 1.0 and metrics["regression"] == metrics["regression_plain"]
    assert cycle.step.tensors() == {}


def test_half_rate_timesteps_regress_on_half_rate_latents() -> None:
    cycle = make_cycle("rollout.half_rate_stages=2")
    channels, frames, height, width = LATENT_SHAPE
    strides = set()
    for seed in range(6):
        shape, levels, stride = regression_calls(cycle, seed)
        strides.add(stride)
        assert shape == (BATCH, channels, 3 if stride == 2 else frames, height, width)
        assert all((level > 0.8) == (stride == 2) for level in levels)
    assert strides == {1, 2}
