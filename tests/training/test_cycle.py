"""One cycle of distillation: what it costs, whom it changes, and that its gradient is the whole method's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from avd.config import Recipe, load_recipe
from avd.flow import few_step_sigmas
from avd.interpolation import FrameInterpolator
from avd.models.wan import VideoModel
from avd.sampling.rollout import Rollout, make_stages
from avd.training.cycle import Batch, Cycle
from avd.training.roles import Roles
from tiny import LATENT_SHAPE, tiny_interpolator, tiny_model, tiny_source

BATCH = 3
TRUNCATION = -10.0
"""Far below the loss of random latents: the temporal term acts."""


@pytest.fixture(scope="module")
def model() -> VideoModel:
    return tiny_model()


@pytest.fixture(scope="module")
def interpolator() -> FrameInterpolator:
    return tiny_interpolator().eval().requires_grad_(False)


@pytest.fixture
def make(model: VideoModel, interpolator: FrameInterpolator) -> Callable[..., Cycle]:
    def make_cycle(*overrides: str) -> Cycle:
        recipe = load_recipe("avd", [f"training.batch={BATCH}", *overrides])
        stages = make_stages(few_step_sigmas(recipe.rollout.timesteps), recipe.rollout.half_rate_stages)
        roles = Roles(model, recipe)
        part_ways(roles)
        rollout = Rollout(stages, interpolator)
        return Cycle(recipe, roles, rollout, model.encode_prompts([""]), TRUNCATION)

    return make_cycle


def part_ways(roles: Roles) -> None:
    """Networks that start equal would hide which of them was asked."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for trained in (roles.student, roles.fake_score):
            for p in trained.network.parameters():
                p += 0.05 * torch.randn(p.shape, generator=generator)


def make_batch(model: VideoModel, recipe: Recipe, seed: int = 0) -> Batch:
    source = tiny_source(model, count=8, seed=seed)
    rollouts = 1 if recipe.rollout.shared else recipe.fake_score.updates
    prompts = tuple(source.prompts([(i + j) % 8 for j in range(BATCH)]) for i in range(rollouts))
    return Batch(source.latents(range(BATCH)), source.prompts(range(BATCH)), prompts)


def seeded_for_exit(stage: int, stages: int = 4) -> torch.Generator:
    """A generator whose first draw sends a rollout to `stage`."""
    for seed in range(1000):
        if int(torch.randint(stages, (), generator=torch.Generator().manual_seed(seed))) == stage:
            return torch.Generator().manual_seed(seed)
    raise AssertionError


def copies(**networks: nn.Module) -> dict[str, dict[str, Tensor]]:
    return {name: {k: v.clone() for k, v in network.state_dict().items()} for name, network in networks.items()}


def networks(cycle: Cycle) -> dict[str, nn.Module]:
    roles = cycle.roles
    return {
        "teacher": roles.teacher,
        "student": roles.student.network,
        "fake_score": roles.fake_score.network,
        "average": roles.average.module,
    }


def changed(cycle: Cycle, before: Mapping[str, Mapping[str, Tensor]]) -> set[str]:
    after = copies(**networks(cycle))
    return {name for name in before if any(not torch.equal(v, after[name][k]) for k, v in before[name].items())}


@contextmanager
def counted(cycle: Cycle) -> Iterator[Counter[str]]:
    """Forwards of the real transformers, in whole batches: a doubled batch counts two, and so does a backward.

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
def test_a_cycle_with_a_shared_rollout_costs_at_most_27_forwards(
    make: Callable[..., Cycle], model: VideoModel, exit_stage: int, half_rate_stages: int
) -> None:
    cycle = make("rollout.shared=true", f"rollout.half_rate_stages={half_rate_stages}")
    with counted(cycle) as cost:
        figures = cycle.run(make_batch(model, cycle.recipe), seeded_for_exit(exit_stage))
    assert figures["exit_stage"] == exit_stage
    assert cost == {
        "student": exit_stage + 3 + 3,  # stages before the exit, the exit, regression
        "teacher": 2,  # CFG
        "fake_score": 1 + 5 * 3,
    }
    assert cost.total() == 24 + exit_stage <= 27


def test_a_cycle_with_fresh_rollouts_costs_at_most_36_forwards_on_average(
    make: Callable[..., Cycle], model: VideoModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    cycle = make("rollout.shared=false")
    exits: list[int] = []
    roll_out = Rollout.__call__

    def recorded(self: Rollout, *args: Any, exit_stage: int, **options: Any) -> Tensor:
        exits.append(exit_stage)
        return roll_out(self, *args, exit_stage=exit_stage, **options)

    monkeypatch.setattr(Rollout, "__call__", recorded)
    for seed in range(4):
        exits.clear()
        with counted(cycle) as cost:
            cycle.run(make_batch(model, cycle.recipe), torch.Generator().manual_seed(seed))
        assert len(exits) == 5
        assert cost.total() == 28 + sum(exits)
    mean_exit = (0 + 1 + 2 + 3) / 4  # exits are uniform: see the next test
    assert 28 + 5 * mean_exit == 35.5 <= 36


def test_exits_are_uniform(make: Callable[..., Cycle]) -> None:
    cycle = make()
    exits: Counter[int] = Counter()

    def stub(*args: Any, exit_stage: int, **options: Any) -> Tensor:
        exits[exit_stage] += 1
        return torch.zeros(())

    cycle.rollout = stub  # type: ignore[assignment]
    generator = torch.Generator().manual_seed(0)
    for _ in range(2000):
        cycle._roll_out(torch.zeros(1, 1, 1), torch.Size((1, 1, 1, 1)), generator, gradient=False)
    assert set(exits) == {0, 1, 2, 3}
    assert all(abs(count - 500) < 5 * (2000 * 0.25 * 0.75) ** 0.5 for count in exits.values())


def test_what_has_no_weight_costs_no_forward(make: Callable[..., Cycle], model: VideoModel) -> None:
    def run(*overrides: str) -> tuple[Counter[str], dict[str, float]]:
        cycle = make(*overrides)
        with counted(cycle) as cost:
            figures = cycle.run(make_batch(model, cycle.recipe), seeded_for_exit(0))
        return cost, figures

    whole, _ = run()
    plain, figures = run("objective.regression.weight=0")
    assert whole - plain == {"student": 3}
    assert not any(name.startswith("regression") for name in figures)
    still, figures = run("objective.temporal.weight=0")
    assert still == whole  # the temporal term reads samples that are there anyway
    assert not any(name.startswith("temporal") for name in figures)
    unguided, _ = run("objective.distribution_matching.guidance=1")
    assert whole - unguided == {"teacher": 1}


# -- who changes --------------------------------------------------------------------------------------------------


def test_a_student_update_changes_the_student_its_average_and_the_loss_cache(
    make: Callable[..., Cycle], model: VideoModel
) -> None:
    cycle = make()
    before = copies(**networks(cycle))
    cycle._update_student(make_batch(model, cycle.recipe), torch.Generator().manual_seed(0))
    assert changed(cycle, before) == {"student", "average"}
    assert cycle.means.seen_S.any()
    assert all(p.grad is None for network in networks(cycle).values() for p in network.parameters())


def test_a_fake_score_update_changes_the_fake_score_alone(make: Callable[..., Cycle], model: VideoModel) -> None:
    cycle = make()
    batch = make_batch(model, cycle.recipe)
    before = copies(**networks(cycle))
    sample = batch.latents_BCFHW.clone().requires_grad_()
    cycle._update_fake_score(sample, batch.rollout_prompts[0], torch.Generator().manual_seed(0))
    assert changed(cycle, before) == {"fake_score"}
    assert sample.grad is None and not cycle.means.seen_S.any()


def test_the_teacher_and_the_interpolator_never_change_and_never_receive_gradient(
    make: Callable[..., Cycle], model: VideoModel, interpolator: FrameInterpolator
) -> None:
    cycle = make("rollout.half_rate_stages=2", "rollout.shared=false")
    before = copies(teacher=cycle.roles.teacher, interpolator=interpolator)
    touched: list[str] = []
    for name, network in (("teacher", cycle.roles.teacher), ("interpolator", interpolator)):
        assert not any(p.requires_grad for p in network.parameters())
        for p in network.parameters():
            p.requires_grad_()  # so that a gradient would show if the cycle let one through
            p.register_hook(lambda gradient, name=name: touched.append(name))
    for exit_stage in range(2):
        cycle.run(make_batch(model, cycle.recipe), seeded_for_exit(exit_stage))
    assert "teacher" not in touched and all(p.grad is None for p in cycle.roles.teacher.parameters())
    for name, network in (("teacher", cycle.roles.teacher), ("interpolator", interpolator)):
        network.requires_grad_(False).zero_grad(set_to_none=True)
        assert all(torch.equal(v, before[name][k]) for k, v in network.state_dict().items())


# -- the gradient -------------------------------------------------------------------------------------------------


def reference_gradient(cycle: Cycle, batch: Batch, interpolator: FrameInterpolator, g: torch.Generator) -> list[Tensor]:
    """Eq. 9 as one sum, backpropagated at once, from the same random numbers."""
    objective, sigmas = cycle.recipe.objective, (1.0, 0.9, 0.757, 0.522)
    half = cycle.recipe.rollout.half_rate_stages
    student, teacher, fake = cycle.roles.student.network, cycle.roles.teacher, cycle.roles.fake_score.network
    prompt, null = batch.rollout_prompts[0], cycle.null_prompt.expand(BATCH, -1, -1)

    def column(sigma_B: Tensor) -> Tensor:
        return sigma_B.view(-1, 1, 1, 1, 1)

    exit_stage = int(torch.randint(4, (), generator=g))
    x = torch.randn(BATCH, *LATENT_SHAPE, generator=g)
    for i in range(exit_stage + 1):
        stride = 2 if i < half else 1
        if i:
            noise = torch.randn(BATCH, *LATENT_SHAPE, generator=g)
            x = (1 - sigmas[i]) * x.detach() + sigmas[i] * noise
        x = x[:, :, ::stride]
        x = x - sigmas[i] * student(x, torch.full((BATCH,), sigmas[i]), prompt, frame_stride=stride)
        if stride == 2:
            x = interpolator(x)

    sigma_B = 0.02 + 0.96 * torch.rand(BATCH, generator=g)
    noisy = (1 - column(sigma_B)) * x + column(sigma_B) * torch.randn(x.shape, generator=g)
    with torch.no_grad():
        uncond = teacher(noisy, sigma_B, null)
        real_v = uncond + 5.0 * (teacher(noisy, sigma_B, prompt) - uncond)
        real, imitated = (noisy - column(sigma_B) * v for v in (real_v, fake(noisy, sigma_B, prompt)))
        kl_gradient = (imitated - real) / (x - real).abs().mean((1, 2, 3, 4), keepdim=True)
    kl = (kl_gradient * x).mean()  # its gradient is kl_gradient / (number of values)

    temporal = -torch.log(x.var(2, correction=0).mean() + 1e-6)

    stride = 2 if int(torch.randint(4, (), generator=g)) < half else 1
    choices = [i for i in range(4) if (2 if i < half else 1) == stride]
    index = torch.tensor(choices)[torch.randint(len(choices), (BATCH,), generator=g)]
    x0 = batch.latents_BCFHW[:, :, ::stride]
    eps = torch.randn(x0.shape, generator=g)
    s = torch.tensor(sigmas)[index]
    v = student((1 - column(s)) * x0 + column(s) * eps, s, batch.prompts_BLD, frame_stride=stride)
    losses = (v - (eps - x0)).square().mean((1, 2, 3, 4))
    weights = 1 - torch.sigmoid(3.0 * (losses.detach() - cycle.means.mean_S[index].float()))

    total = kl + 2.0 * (weights * losses).mean() + objective.temporal.weight * temporal
    return list(torch.autograd.grad(total, list(student.parameters())))


@pytest.mark.parametrize("exit_stage", range(4))
@pytest.mark.parametrize("half_rate_stages", [0, 2])
def test_term_by_term_the_gradient_is_that_of_the_whole_loss(
    make: Callable[..., Cycle],
    model: VideoModel,
    interpolator: FrameInterpolator,
    monkeypatch: pytest.MonkeyPatch,
    exit_stage: int,
    half_rate_stages: int,
) -> None:
    # A heavy temporal term, so that its share of the gradient is not lost in the tolerance.
    cycle = make(f"rollout.half_rate_stages={half_rate_stages}", "objective.temporal.weight=1")
    cycle.means.mean_S, cycle.means.seen_S = torch.tensor([2.0, 1.5, 1.2, 1.0]).double(), torch.ones(4).bool()
    batch = make_batch(model, cycle.recipe)
    expected = reference_gradient(cycle, batch, interpolator, seeded_for_exit(exit_stage))
    found: list[Tensor] = []
    student = cycle.roles.student
    monkeypatch.setattr(student, "step", lambda: found.extend(p.grad for p in student.network.parameters()) or 0.0)
    cycle._update_student(batch, seeded_for_exit(exit_stage))
    difference = torch.cat([(a - b).flatten() for a, b in zip(found, expected, strict=True)])
    assert difference.norm() <= 1e-6 * torch.cat([b.flatten() for b in expected]).norm()


# -- robustness and schedule --------------------------------------------------------------------------------------


def poisoned(batch: Batch, part: str) -> Batch:
    latents, prompts = batch.latents_BCFHW.clone(), tuple(p.clone() for p in batch.rollout_prompts)
    if part == "video":
        latents[0, 0, 0] = torch.nan
    else:
        prompts[0][0, 0] = torch.inf
    return Batch(latents, batch.prompts_BLD, prompts)


def test_a_bad_video_costs_a_student_update_and_no_more(make: Callable[..., Cycle], model: VideoModel) -> None:
    cycle = make()
    batch = make_batch(model, cycle.recipe)
    before = copies(**networks(cycle))
    figures = cycle.run(poisoned(batch, "video"), torch.Generator().manual_seed(0))
    assert (figures["skipped_student"], figures["skipped_fake_score"]) == (1, 0)
    assert changed(cycle, before) == {"fake_score"}
    assert cycle.means.mean_S.isfinite().all()
    assert not cycle.roles.student.optimizer.state
    figures = cycle.run(batch, torch.Generator().manual_seed(1))
    assert (figures["skipped_student"], figures["skipped_fake_score"]) == (1, 0)
    assert {"student", "average"} <= changed(cycle, before)
    assert all(v.isfinite().all() for network in networks(cycle).values() for v in network.state_dict().values())


def test_a_bad_sample_is_learnt_by_nobody(make: Callable[..., Cycle], model: VideoModel) -> None:
    cycle = make()
    batch = make_batch(model, cycle.recipe)
    before = copies(**networks(cycle))
    figures = cycle.run(poisoned(batch, "prompt"), torch.Generator().manual_seed(0))
    assert (figures["skipped_student"], figures["skipped_fake_score"]) == (1, 5)
    assert changed(cycle, before) == set()
    assert cycle.run(batch, torch.Generator().manual_seed(1))["skipped_fake_score"] == 5
    assert changed(cycle, before) == {"student", "average", "fake_score"}


def test_warmup_counts_steps_taken(make: Callable[..., Cycle], model: VideoModel) -> None:
    cycle = make("student.optimizer.warmup=4", "student.optimizer.learning_rate=4e-5")
    batch = make_batch(model, cycle.recipe)
    rates = []
    for n, spoil in enumerate([False, True, False, False, False, False]):
        cycle.run(poisoned(batch, "video") if spoil else batch, torch.Generator().manual_seed(n))
        rates.append(cycle.roles.student.optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([1e-5, 2e-5, 2e-5, 3e-5, 4e-5, 4e-5])
    assert cycle.roles.fake_score.optimizer.param_groups[0]["lr"] == 1e-4


def test_the_gradient_is_clipped(
    make: Callable[..., Cycle], model: VideoModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    cycle = make("student.optimizer.clip=0.01")
    norms = []
    student = cycle.roles.student

    def step() -> None:
        norms.append(torch.cat([p.grad.flatten() for p in student.network.parameters()]).norm().item())

    monkeypatch.setattr(student.optimizer, "step", step)
    figures = cycle.run(make_batch(model, cycle.recipe), torch.Generator().manual_seed(0))
    assert norms == pytest.approx([0.01], rel=1e-3)
    assert figures["student_grad_norm"] > 0.01


# -- the regression branch ----------------------------------------------------------------------------------------


def regression_calls(cycle: Cycle, model: VideoModel, seed: int) -> tuple[tuple[int, ...], list[float], int]:
    """Shape, noise levels and stride that the student saw in its regression: its last call of a cycle."""
    seen: list[tuple[tuple[int, ...], list[float], int]] = []

    def record(module: nn.Module, args: tuple[Tensor, ...], options: dict[str, Any], output: Tensor) -> None:
        seen.append((tuple(args[0].shape), args[1].tolist(), options.get("frame_stride", 1)))

    handle = cycle.roles.student.network.register_forward_hook(record, with_kwargs=True)
    cycle.run(make_batch(model, cycle.recipe), torch.Generator().manual_seed(seed))
    handle.remove()
    return seen[-1]


def test_the_loss_cache_is_kept_per_timestep(make: Callable[..., Cycle], model: VideoModel) -> None:
    cycle = make()
    sigmas = [1.0, 0.9, 0.757, 0.522]
    met: set[int] = set()
    for seed in range(4):
        before = cycle.means.mean_S.clone()
        _, levels, _ = regression_calls(cycle, model, seed)
        here = {min(range(4), key=lambda i: abs(sigmas[i] - level)) for level in levels}
        met |= here
        assert {i for i in range(4) if cycle.means.mean_S[i] != before[i]} == here
        assert {i for i in range(4) if cycle.means.seen_S[i]} == met


def test_plain_regression_keeps_no_cache(make: Callable[..., Cycle], model: VideoModel) -> None:
    cycle = make("objective.regression.adaptive=false")
    figures = cycle.run(make_batch(model, cycle.recipe), torch.Generator().manual_seed(0))
    assert figures["regression_weight"] == 1.0 and figures["regression"] == figures["regression_plain"]
    assert not cycle.means.seen_S.any()


def test_half_rate_timesteps_regress_on_half_rate_latents(make: Callable[..., Cycle], model: VideoModel) -> None:
    cycle = make("rollout.half_rate_stages=2")
    channels, frames, height, width = LATENT_SHAPE
    strides = set()
    for seed in range(6):
        shape, levels, stride = regression_calls(cycle, model, seed)
        strides.add(stride)
        assert shape == (BATCH, channels, 3 if stride == 2 else frames, height, width)
        assert all((level > 0.8) == (stride == 2) for level in levels)
    assert strides == {1, 2}
