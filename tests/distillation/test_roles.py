"""Roles over one frozen base are roles over three models: nobody who uses them can tell."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from diffusers import WanPipeline
from diffusers.models.attention_dispatch import _AttentionBackendRegistry
from torch import Tensor

from avd.config import load_recipe
from avd.distillation.roles import Roles
from avd.distillation.starts import Starts
from avd.distillation.task import DistillTask
from avd.engine.randomness import generator_for
from avd.methods.method import Method
from avd.models.adapters import merged_stream
from avd.models.family import load_model
from avd.models.wan.network import WanVelocity
from avd.sampling.choose import load_interpolator, make_sampler
from avd.types import Conditions, UserError
from helpers.cycles import Cycle, make_batch, make_cycle, random_for_exit, update_random
from helpers.distill_run import distill, small_recipe
from helpers.tiny import LATENT_SHAPE, tiny_data, tiny_interpolator, tiny_model

ADAPTERS = ("roles=adapters", "adapters.rank=4", "adapters.alpha=8")


def make_roles(*overrides: str) -> Roles:
    recipe = load_recipe("avd", overrides)
    method = Method.of(recipe)
    return Roles(Starts.alike(tiny_model(), method), recipe, method)


def weights(roles: Roles) -> dict[str, dict[str, Tensor]]:
    named = {
        "student": roles.student.network,
        "fake_score": roles.auxiliary("fake_score"),
        "average": roles.average.network,
    }
    return {name: {k: p.detach().clone() for k, p in net.named_parameters()} for name, net in named.items()}


def base_of(roles: Roles) -> dict[str, Tensor]:
    transformer = roles.teacher.base.transformer  # type: ignore[attr-defined]
    return {k: p.detach().clone() for k, p in transformer.named_parameters() if "lora_" not in k}


def changed(roles: Roles, before: dict[str, dict[str, Tensor]]) -> set[str]:
    after = weights(roles)
    return {name for name in before if any(not torch.equal(v, after[name][k]) for k, v in before[name].items())}


def velocities(roles: Roles) -> dict[str, Tensor]:
    g = generator_for(0)
    x, sigma = torch.randn(2, *LATENT_SHAPE, generator=g), torch.tensor([0.9, 0.3])
    zeros = Conditions({"embedding": torch.zeros(2, 7, 64)})
    networks = {
        "teacher": roles.teacher,
        "student": roles.student.network,
        "fake_score": roles.learned["fake_score"].network,
        "average": roles.average.network,
    }
    return {name: network(x, sigma, zeros).detach() for name, network in networks.items()}


def test_before_the_first_update_all_roles_are_the_teacher_in_both_modes() -> None:
    full = velocities(make_roles())
    adapters = velocities(make_roles(*ADAPTERS))
    for name, found in adapters.items():
        assert torch.equal(found, full["teacher"]) and torch.equal(full[name], full["teacher"])


def test_the_first_cycles_losses_are_the_same_in_both_modes() -> None:
    """Until an update moves them: the student's terms, and what the first fake-score update sees."""
    full, adapters = (make_cycle(*mode, together=True) for mode in ((), ADAPTERS))
    batch = make_batch(full.recipe)
    found, expected = (cycle.update_student(batch, update_random())[1] for cycle in (adapters, full))
    for name in ("distribution_matching", "regression", "temporal", "dm_norm"):
        assert found[name] == pytest.approx(expected[name], rel=1e-5)


@pytest.mark.parametrize(("clip", "largest"), [("null", 1000.0), ("1.0", 1.0)])
def test_a_gradient_is_clipped_unless_it_need_not_be(
    clip: str, largest: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    student = make_roles(f"student.optimizer.clip={clip}").student
    weight, taken = next(iter(student.network.parameters())), []
    weight.grad = torch.zeros_like(weight).fill_(1000.0 / weight.numel() ** 0.5)
    monkeypatch.setattr(student.optimizer, "step", lambda: taken.append(weight.grad.norm().item()))  # type: ignore[union-attr]
    assert student.step() == pytest.approx(1000.0) and taken == [pytest.approx(largest)]


@pytest.mark.parametrize("mode", [(), ADAPTERS], ids=["full", "adapters"])
def test_a_fake_score_takes_over_a_share_of_the_student_after_each_step_that_it_takes(mode: tuple[str, ...]) -> None:
    roles = make_roles("fake_score.ida=0.97", *mode)
    student, fake = roles.student.network, roles.auxiliary("fake_score")
    for network in (student, fake):
        for p in network.parameters():
            p.data.add_(torch.randn(p.shape))
    own = [p.detach().clone() for p in fake.parameters()]
    for p in student.parameters():
        p.grad = torch.full_like(p, torch.nan)
    roles.step_student({"fake_score"})  # which is skipped
    assert all(torch.equal(p, before) for p, before in zip(fake.parameters(), own, strict=True))
    for p in student.parameters():
        p.grad = torch.ones_like(p)
    roles.step_student({"fake_score"})
    for p, before, moved in zip(fake.parameters(), own, student.parameters(), strict=True):
        torch.testing.assert_close(p.detach(), 0.97 * before + 0.03 * moved.detach())


def test_the_gradient_of_an_adapter_is_that_of_its_merged_weights() -> None:
    """For W' = W + (alpha / rank) B A: dL/dB = (alpha / rank) dL/dW' A^T, from the full mode's gradient at W'."""
    cycle = make_cycle(*ADAPTERS)
    grads: dict[str, Tensor] = {}
    student = cycle.roles.student
    student.step = lambda: (
        grads.update(  # type: ignore[method-assign]
            {k: p.grad.clone() for k, p in student.network.named_parameters() if p.grad is not None}
        )
        or 0.0
    )
    batch = make_batch(cycle.recipe)
    cycle.update_student(batch, random_for_exit(1))

    full = make_cycle(together=True)
    full.roles.student.network.transformer.load_state_dict(merged(cycle, "student"))  # type: ignore[attr-defined]
    full.roles.learned["fake_score"].network.transformer.load_state_dict(merged(cycle, "fake_score"))  # type: ignore[attr-defined]
    full_grads: dict[str, Tensor] = {}
    learner = full.roles.student
    learner.step = lambda: (
        full_grads.update(  # type: ignore[method-assign]
            {k: p.grad.clone() for k, p in learner.network.named_parameters()}
        )
        or 0.0
    )
    full.update_student(batch, random_for_exit(1))
    layer = "transformer.blocks.0.attn1.to_q"
    down = dict(student.network.named_parameters())[f"{layer}.lora_A.student.weight"]
    expected = 2.0 * full_grads[f"{layer}.weight"] @ down.T  # alpha / rank = 2
    torch.testing.assert_close(grads[f"{layer}.lora_B.student.weight"], expected, rtol=1e-4, atol=1e-7)


def merged(cycle: Cycle, adapter: str) -> dict[str, Tensor]:
    base = cycle.roles.teacher.base  # type: ignore[attr-defined]
    stored = tiny_model().weights()
    return dict(merged_stream(base.transformer, adapter, stored, lambda p: p.detach()))


def test_a_student_step_moves_only_the_students_adapter_and_its_average() -> None:
    cycle = make_cycle(*ADAPTERS)
    before, base = weights(cycle.roles), base_of(cycle.roles)
    cycle.update_student(make_batch(cycle.recipe), update_random())
    assert changed(cycle.roles, before) == {"student", "average"}
    assert all(torch.equal(p, base[k]) for k, p in base_of(cycle.roles).items())


def test_a_fake_score_step_moves_only_the_fake_scores_adapter() -> None:
    cycle = make_cycle(*ADAPTERS)
    before, base = weights(cycle.roles), base_of(cycle.roles)
    batch = make_batch(cycle.recipe)
    cycle.update_fake_score([batch.latents_BCFHW], batch, update_random(), 0)
    assert changed(cycle.roles, before) == {"fake_score"}
    assert all(torch.equal(p, base[k]) for k, p in base_of(cycle.roles).items())


@pytest.mark.parametrize("checkpointing", ["none", "selective", "full"])
def test_the_teacher_stays_what_it_was(checkpointing: str) -> None:
    cycle = make_cycle(*ADAPTERS, f"compute.checkpointing={checkpointing}", "rollout.half_rate_stages=2")
    before = velocities(cycle.roles)["teacher"]
    for n in range(2):
        cycle.run(make_batch(cycle.recipe), update_random(n))
    after = velocities(cycle.roles)
    assert torch.equal(after["teacher"], before)
    assert all(not torch.equal(v, before) for name, v in after.items() if name != "teacher")


@pytest.mark.parametrize("mode", [(), ADAPTERS], ids=["full", "adapters"])
@pytest.mark.parametrize("checkpointing", ["selective", "full"])
def test_activations_computed_again_change_nothing(mode: tuple[str, ...], checkpointing: str) -> None:
    """With adapters, the recomputation must run with the adapter that the forward ran with, not the one on now."""
    plain, lean = make_cycle(*mode), make_cycle(*mode, f"compute.checkpointing={checkpointing}")
    batch = make_batch(plain.recipe)
    for n in range(2):
        assert lean.run(batch, update_random(n)) == plain.run(batch, update_random(n))
    expected = weights(plain.roles)
    for name, found in weights(lean.roles).items():
        assert all(torch.equal(v, expected[name][k]) for k, v in found.items())


@pytest.mark.parametrize("mode", [(), ADAPTERS], ids=["full", "adapters"])
@pytest.mark.parametrize("half_rate_stages", [0, 2])
def test_a_batch_in_parts_is_the_batch(mode: tuple[str, ...], half_rate_stages: int) -> None:
    overrides = (*mode, f"rollout.half_rate_stages={half_rate_stages}", "objective.temporal.weight=1")
    full, parts = make_cycle(*overrides), make_cycle(*overrides, "compute.microbatch=2")  # of 3: one part is smaller
    batch = make_batch(full.recipe)
    for n in range(3):
        expected, found = full.run(batch, update_random(n)), parts.run(batch, update_random(n))
        assert found == pytest.approx(expected, rel=1e-4)
    expected_weights = weights(full.roles)
    for name, network in weights(parts.roles).items():
        for k, v in network.items():
            torch.testing.assert_close(v, expected_weights[name][k], rtol=0, atol=2e-5)
    torch.testing.assert_close(parts.means.mean_S, full.means.mean_S, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mode", [(), ADAPTERS], ids=["full", "adapters"])
def test_what_is_exported_computes_what_the_average_does(mode: tuple[str, ...]) -> None:
    cycle = make_cycle(*mode)
    cycle.run(make_batch(cycle.recipe), update_random())
    expected = velocities(cycle.roles)["average"]
    plain = tiny_model().velocity()
    plain.transformer.load_state_dict(dict(cycle.roles.average_stream()))
    g = generator_for(0)
    x, sigma = torch.randn(2, *LATENT_SHAPE, generator=g), torch.tensor([0.9, 0.3])
    found = plain(x, sigma, Conditions({"embedding": torch.zeros(2, 7, 64)}))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_student_may_stay_an_adapter(tmp_path: Path) -> None:
    """It loads by its folder as a merged one does, and by stock diffusers on its base."""
    tiny_model().save(tmp_path / "base")
    latents, velocities_ = {}, {}
    for merge in ("true", "false"):
        recipe = small_recipe(*ADAPTERS, f"adapters.merge={merge}", "student.optimizer.learning_rate=1e-2")
        model = load_model(str(tmp_path / "base"))
        task = DistillTask(recipe, model, tiny_data(model), tiny_interpolator())
        distill(tmp_path / merge, 2, task=task)
        student = load_model(str(tmp_path / merge / "student"))
        assert student.settings.student_timesteps == (1000, 900, 757, 522) and student.settings.half_rate_stages == 2
        assert load_interpolator(student) is not None
        latents[merge] = make_sampler(student)(["a red square"], generator_for(0))
    torch.testing.assert_close(latents["false"], latents["true"], rtol=1e-4, atol=1e-4)
    names = {part.name for part in (tmp_path / "false" / "student").iterdir()}
    assert names == {"adapter.json", "avd.json", "interpolator", "pytorch_lora_weights.safetensors"}

    pipeline = WanPipeline.from_pretrained(tmp_path / "base", dtype=torch.float32)
    x, sigma, prompt = (
        torch.ones(1, *LATENT_SHAPE),
        torch.tensor([0.5]),
        Conditions({"embedding": torch.ones(1, 7, 64)}),
    )
    velocities_["base"] = WanVelocity(pipeline.transformer)(x, sigma, prompt)
    pipeline.load_lora_weights(tmp_path / "false" / "student")
    velocities_["stock"] = WanVelocity(pipeline.transformer)(x, sigma, prompt)
    velocities_["own"] = load_model(str(tmp_path / "true" / "student")).velocity()(x, sigma, prompt)
    torch.testing.assert_close(velocities_["stock"], velocities_["own"], rtol=1e-4, atol=1e-4)
    assert (velocities_["stock"] - velocities_["base"]).abs().max() > 1e-3


def test_an_adapter_of_another_model_is_refused(tmp_path: Path) -> None:
    tiny_model().save(tmp_path / "base")
    model = load_model(str(tmp_path / "base"))
    task = DistillTask(
        small_recipe(*ADAPTERS, "adapters.merge=false"),
        model,
        tiny_data(model),
        tiny_interpolator(),
    )
    distill(tmp_path / "run", 1, task=task)
    student = tmp_path / "run" / "student"
    (student / "adapter.json").write_text(json.dumps({"base": "wan-mini", "transformer": None}))
    with pytest.raises(UserError, match=r"the adapter .*student does not fit its base"):
        load_model(str(student)).velocity()
    (student / "adapter.json").write_text("{")
    with pytest.raises(UserError, match=r"adapter.json does not say what it is an adapter of"):
        load_model(str(student))


def test_an_unknown_target_is_refused() -> None:
    with pytest.raises(UserError, match=r"adapters.targets names 'to_z'"):
        make_roles(*ADAPTERS, "adapters.targets=[to_q, to_z]")


def test_a_chosen_attention_computes_the_same_and_is_chosen_for_that_network_alone() -> None:
    before = _AttentionBackendRegistry.get_active_backend()
    plain, chosen = (make_cycle(*o) for o in ((), ("compute.attention=_native_math",)))
    assert _AttentionBackendRegistry.get_active_backend() == before
    batch = make_batch(plain.recipe)
    assert chosen.run(batch, update_random()) == pytest.approx(plain.run(batch, update_random()), rel=1e-4)


def test_roles_do_not_share_what_they_should_not() -> None:
    model = tiny_model()
    before = copy.deepcopy(model.transformer.state_dict())
    cycle = make_cycle()
    cycle.run(make_batch(cycle.recipe), update_random())
    assert all(torch.equal(v, before[k]) for k, v in model.transformer.state_dict().items())
