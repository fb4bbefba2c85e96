"""Precision, compilation and 8-bit moments: what they may change of a cycle, and what not."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters
from torch.distributed.tensor import DTensor

from avd.distillation.roles import Trained
from avd.engine.checkpoint import load_checkpoint
from avd.engine.ranks import Ranks, process_group
from avd.models.backbone import COMPILED_VERSIONS
from avd.models.wan.network import WanVelocity
from avd.types import Conditions, UserError
from helpers.checkpoints import save_checkpoint
from helpers.cycles import make_batch, make_cycle, random_for_exit, update_random
from helpers.distill_run import distill, small_recipe, small_task
from helpers.tiny import tiny_model

BF16 = "compute.dtype=bfloat16"
ADAPTERS = ("roles=adapters", "adapters.rank=4")


@pytest.fixture(scope="module")
def sharded() -> Iterator[Ranks]:
    """One process, with its weights sharded over itself, as bfloat16 has them."""
    with process_group(small_recipe(BF16).compute) as ranks:
        yield ranks


@pytest.mark.parametrize("mode", [(), ADAPTERS], ids=["full", "adapters"])
def test_bfloat16_computes_about_what_float32_does(mode: tuple[str, ...], sharded: Ranks) -> None:
    precise = make_cycle(*mode, together=True)
    coarse = make_cycle(*mode, BF16, together=True, ranks=sharded)
    batch = make_batch(precise.recipe)
    expected, found = precise.run(batch, update_random()), coarse.run(batch, update_random())
    for name in ("regression", "temporal", "fake_score", "dm_norm"):
        assert found[name] == pytest.approx(expected[name], rel=0.03)
        assert found[name] != expected[name]  # it is not float32 in disguise


@pytest.mark.parametrize("mode", [(), ADAPTERS], ids=["full", "adapters"])
def test_trained_weights_and_moments_stay_in_float32(mode: tuple[str, ...], sharded: Ranks) -> None:
    cycle = make_cycle(*mode, BF16, together=True, ranks=sharded)
    cycle.run(make_batch(cycle.recipe), update_random())
    roles = cycle.roles
    for network in (roles.student.network, roles.learned["fake_score"].network, roles.average.network):
        assert {p.dtype for p in network.parameters()} == {torch.float32}
    moments = [v for slots in roles.student.optimizer.state.values() for v in slots.values()]
    assert {v.dtype for v in moments} == {torch.float32}
    assert {v.dtype for _, v in roles.average_stream()} == {torch.float32}


def test_frozen_weights_are_stored_in_bfloat16_but_for_what_diffusers_keeps(sharded: Ranks) -> None:
    teacher = make_cycle(BF16, ranks=sharded, together=True).roles.teacher
    types = {name: p.dtype for name, p in teacher.named_parameters()}
    assert types["transformer.blocks.0.attn1.to_q.weight"] == torch.bfloat16
    assert types["transformer.condition_embedder.time_embedder.linear_1.weight"] == torch.float32
    assert types["transformer.scale_shift_table"] == torch.float32


def test_timesteps_are_not_rounded_to_bfloat16(sharded: Ranks) -> None:
    """752 and 753 of 1000 are one number in bfloat16; the embedding must tell them apart as float32 does."""
    cycle = make_cycle(BF16, ranks=sharded, together=True)
    seen: list[torch.Tensor] = []
    network = cycle.roles.student.network
    assert isinstance(network, nn.Module)
    embedder = network.transformer.condition_embedder.time_embedder
    embedder.register_forward_hook(lambda module, args, output: seen.append(output))
    x, prompt = torch.zeros(2, 12, 5, 2, 2), Conditions({"embedding": torch.zeros(2, 7, 64)})
    with torch.no_grad():
        network(x, torch.tensor([0.752, 0.753]), prompt)
    assert seen[0].dtype == torch.float32 and not torch.equal(seen[0][0], seen[0][1])


@pytest.mark.parametrize("mode", [(), ADAPTERS], ids=["full", "adapters"])
def test_a_bfloat16_run_resumes_to_the_same_bytes(mode: tuple[str, ...], tmp_path: Path, sharded: Ranks) -> None:
    recipe = small_recipe(BF16, *mode)
    straight = distill(tmp_path / "straight", 3, task=small_task(recipe, sharded))
    distill(tmp_path / "short", 2, task=small_task(recipe, sharded))
    resumed = distill(tmp_path / "short", 3, resume=True, task=small_task(recipe, sharded))
    found, expected = resumed.tensors(), straight.tensors()
    assert found.keys() == expected.keys()
    assert all(torch.equal(_plain(found[k]), _plain(v)) for k, v in expected.items())


def test_the_average_run_forward_is_the_average_as_it_is_now(sharded: Ranks) -> None:
    """A sharded network that is only ever run forward must not keep weights gathered before."""
    cycle = make_cycle(BF16, "student.optimizer.learning_rate=1e-2", ranks=sharded, together=True)
    x, sigma, prompt = torch.ones(1, 12, 5, 2, 2), torch.tensor([0.5]), Conditions({"embedding": torch.zeros(1, 7, 64)})
    before = cycle.roles.average.network(x, sigma, prompt)
    cycle.run(make_batch(cycle.recipe), update_random())
    assert not torch.equal(cycle.roles.average.network(x, sigma, prompt), before)


def test_norms_and_tables_compute_in_float32(sharded: Ranks) -> None:
    """In training as at inference: output and gradients are those of weights stored as diffusers stores them."""
    student = make_cycle(BF16, together=True, ranks=sharded).roles.student.network
    assert isinstance(student, WanVelocity)
    plain = WanVelocity(tiny_model().transformer)
    for name, parameter in plain.named_parameters():
        if not plain.stays_in_float32(name):
            parameter.data = parameter.data.bfloat16()
    plain.compute_dtype = torch.bfloat16
    x, prompt = torch.randn(2, 12, 5, 2, 2), Conditions({"embedding": torch.randn(2, 7, 64)})
    found, expected = (network(x, torch.tensor([0.9, 0.3]), prompt) for network in (student, plain))
    assert torch.equal(found, expected)
    for velocity in (found, expected):
        velocity.square().mean().backward()
    gradients = {name: p.grad for name, p in plain.named_parameters()}
    for name, parameter in student.named_parameters():
        assert parameter.grad is not None and parameter.grad.dtype == torch.float32
        expected_gradient = gradients[name]
        assert expected_gradient is not None
        error = _plain(parameter.grad) - expected_gradient  # bfloat16 is summed in another order
        assert error.norm() <= 0.01 * expected_gradient.float().norm()


def test_what_is_computed_again_is_gathered_once(sharded: Ranks) -> None:
    """Recomputation is within what FSDP shards, whose hooks thus run in the forward pass alone."""
    student = make_cycle(BF16, "compute.checkpointing=full", together=True, ranks=sharded).roles.student.network
    assert isinstance(student, WanVelocity)
    calls: list[str] = []
    block = student.blocks[0]
    block.register_forward_pre_hook(lambda *_: calls.append("block"))
    block.ffn.register_forward_pre_hook(lambda *_: calls.append("part of it"))
    velocity = student(torch.ones(1, 12, 5, 2, 2), torch.tensor([0.5]), Conditions({"embedding": torch.ones(1, 7, 64)}))
    assert calls == ["block", "part of it"]
    velocity.mean().backward()
    assert calls == ["block", "part of it", "part of it"]


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Compilation to the graphs of the real thing; what is left out is the C++ compiler, which takes minutes."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("mode", [(), ADAPTERS], ids=["full", "adapters"])
def test_compiled_blocks_compute_the_same(mode: tuple[str, ...], eager: None) -> None:
    plain = make_cycle(*mode)
    compiled = make_cycle(*mode, "compute.compile=true", "compute.checkpointing=selective")
    batch = make_batch(plain.recipe)
    expected = plain.run(batch, update_random())
    assert compiled.run(batch, update_random()) == pytest.approx(expected, rel=1e-4)
    assert counters["stats"]["unique_graphs"] and not counters["graph_break"]


def test_all_versions_of_a_block_stay_compiled(eager: None) -> None:
    """Adapters and half rate make more of them than PyTorch allows by default, and none is made again."""
    few = ("adapters.targets=[to_q]", "rollout.half_rate_stages=2", "compute.compile=true")
    cycle = make_cycle(*ADAPTERS, *few)
    batch, versions = make_batch(cycle.recipe), []
    for exit_stage in (0, 3, 0, 3):
        cycle.run(batch, random_for_exit(exit_stage))
        versions.append(counters["stats"]["unique_graphs"])
    assert 8 < versions[1] < COMPILED_VERSIONS // 2
    assert versions[3] == versions[1]
    assert counters["frames"]["ok"] == counters["frames"]["total"] == versions[3]  # none was given up


def test_eight_bit_moments_need_torchao(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torchao.optim", None)
    with pytest.raises(UserError, match=r"pip install 'avd\[8bit\]'"):
        make_cycle("student.optimizer.bits=8")


@pytest.mark.parametrize("spread", [False, True])
def test_eight_bit_moments_are_saved_and_resume(spread: bool, tmp_path: Path, sharded: Ranks) -> None:
    pytest.importorskip("torchao.optim", reason="torchao is not installed")
    options = ("student.optimizer.bits=8", "roles=adapters", "adapters.rank=256", "student.optimizer.warmup=0")
    with torch.compiler.set_stance("force_eager"):
        ranks = sharded if spread else Ranks()
        first, second = (
            make_cycle(*options, *([BF16] if spread else []), ranks=ranks, together=True) for _ in range(2)
        )
        batch = make_batch(first.recipe)
        first.run(batch, update_random(0))
        save_checkpoint(tmp_path, 1, first.roles.student.tensors(), first.roles.student.state(), keep=1)
        _load(second.roles.student, tmp_path)
        moments = [_local(slots["exp_avg"]) for slots in first.roles.student.optimizer.state.values()]
        assert any(hasattr(moment, "codes") for moment in moments)  # small ones stay as they are
        state, resumed = (cycle.roles.student.optimizer.state_dict()["state"] for cycle in (first, second))
        for i, slots in state.items():
            for slot in ("exp_avg", "exp_avg_sq"):
                found, expected = _local(resumed[i][slot]), _local(slots[slot])
                assert found.dtype == expected.dtype and hasattr(found, "codes") == hasattr(expected, "codes")
                torch.testing.assert_close(_numbers(found), _numbers(expected), rtol=0.01, atol=1e-7)


def _load(role: Trained, folder: Path) -> None:
    tensors, state = load_checkpoint(folder / "step-0000001")
    role.load(tensors, state)


def _numbers(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.dequantize() if hasattr(tensor, "codes") else tensor


def _local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
