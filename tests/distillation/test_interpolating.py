"""An interpolator that learns with its student: where its gradient comes from, what is saved, resumed and exported."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from avd.config import load_recipe
from avd.distillation.interpolating import saved_interpolator
from avd.distillation.task import DistillTask
from avd.engine.randomness import UpdateRandom
from avd.models.interpolator import FrameInterpolator
from helpers.tiny import LATENT_SHAPE, tiny_data, tiny_interpolator, tiny_model

TRAINED = ("rollout.half_rate_stages=2", "rollout.interpolator=trained", "rollout.interpolator_rate=1e-3")
TEMPORAL = (
    "objective.distribution_matching.weight=0",
    "objective.regression.weight=0",
    "objective.temporal.weight=1",
    "objective.temporal.truncation=-10",
)


def make_task(*changes: str) -> DistillTask:
    model = tiny_model()
    recipe = load_recipe("avd", ["training.batch=2", "monitors.every=0", *TRAINED, *changes])
    return DistillTask(recipe, model, tiny_data(model), tiny_interpolator())


def weights(network: FrameInterpolator) -> Tensor:
    return torch.cat([p.detach().flatten() for p in network.parameters()])


def learning(task: DistillTask) -> FrameInterpolator:
    assert task.learning is not None
    return task.learning.network


def test_it_learns_where_a_rollout_leaves_at_half_rate_and_nowhere_else() -> None:
    task, left = make_task(), set()
    for n in range(12):
        before = weights(learning(task)).clone()
        metrics = task.update(n).metrics
        moved = not torch.equal(weights(learning(task)), before)
        assert moved == ("interpolator_grad_norm" in metrics) == (metrics["exit_stage"] < 2)
        assert all(p.grad is None for p in learning(task).parameters())
        left.add(metrics["exit_stage"])
    assert left == {0, 1, 2, 3}


def test_its_gradient_is_that_of_the_terms_on_the_filled_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    """-log of the variance over frames, by autograd through the student's prediction and the fill."""
    task = make_task(*TEMPORAL, "training.batch=3")
    seen: list[Tensor] = []
    randoms = (UpdateRandom(0, n, range(3)) for n in range(50))
    random = next(each for each in randoms if each.shared_integer("rollout", 0, "exit", high=4) == 1)
    batch = task.reader.next()
    monkeypatch.setattr(task.reader, "next", lambda: batch)
    normal, prompt = partial(random.normal, "rollout", 0, shape=LATENT_SHAPE), batch.rollout_prompts[0]
    student = task.roles.student.network
    x = task.rollout.run_until(student, normal("start"), prompt, normal, 1)
    sample = task.rollout.predict(student, x, prompt, 1, gradient=True)
    loss = -torch.log(sample.var(dim=2, unbiased=False).mean())
    expected = torch.autograd.grad(loss, list(learning(task).parameters()))

    def step() -> float:
        seen.extend(p.grad.clone() for p in learning(task).parameters() if p.grad is not None)
        return 0.0

    assert task.learning is not None
    monkeypatch.setattr(task.learning._role, "step", step)
    task.update(random.update)
    assert len(seen) == len(expected)
    for found, wanted in zip(seen, expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-5)


def test_a_batch_in_parts_trains_it_as_the_full_one() -> None:
    full, parts = make_task(), make_task("compute.microbatch=1")
    for n in range(4):
        full.update(n)
        parts.update(n)
    torch.testing.assert_close(weights(learning(parts)), weights(learning(full)), rtol=1e-3, atol=1e-4)


def test_a_resumed_run_gives_the_same_bytes() -> None:
    straight, killed, resumed = make_task(), make_task(), make_task()
    for n in range(4):
        straight.update(n)
    for n in range(2):
        killed.update(n)
    tensors = {name: tensor.detach().clone() for name, tensor in killed.tensors().items()}
    resumed.load(tensors, killed.state())
    for n in (2, 3):
        resumed.update(n)
    assert resumed.state() == straight.state()
    expected = straight.tensors()
    assert {"interpolator", "interpolator_optimizer", "interpolator_average"} <= {k.partition(".")[0] for k in expected}
    assert all(torch.equal(tensor, expected[name]) for name, tensor in resumed.tensors().items())


def test_the_average_is_sampled_with_and_exported(tmp_path: Path) -> None:
    task = make_task("student.ema=0.5")
    learnt = [n for n in range(4) if "interpolator_grad_norm" in task.update(n).metrics]
    assert learnt
    average = task.learning.average if task.learning is not None else None
    assert average is not None and not torch.equal(weights(average), weights(learning(task)))
    task.export(tmp_path)
    exported = FrameInterpolator.load(tmp_path / "student" / "interpolator")
    assert torch.equal(weights(exported), weights(average))
    assert not torch.equal(weights(exported), weights(tiny_interpolator()))
    for saved in (task.tensors(), task.average_tensors()):  # of a checkpoint, and of the best student
        found = saved_interpolator(task.recipe, saved, tiny_interpolator())
        assert found is not None and torch.equal(weights(found), weights(average))

    normal = partial(UpdateRandom(7, 0, range(2)).normal, shape=LATENT_SHAPE)
    prompts = task.data.prompts.prompts([0, 1])
    before = task.sampler().student(normal("start"), prompts, normal)
    with torch.no_grad():
        next(learning(task).parameters()).add_(1.0)  # of which samples take no notice
    assert torch.equal(task.sampler().student(normal("start"), prompts, normal), before)
    with torch.no_grad():
        next(average.parameters()).add_(1.0)
    assert not torch.equal(task.sampler().student(normal("start"), prompts, normal), before)


def test_a_frozen_one_does_not_learn_and_is_not_saved() -> None:
    task = make_task("rollout.interpolator=frozen")
    for n in range(4):
        assert "interpolator_grad_norm" not in task.update(n).metrics
    assert task.interpolator is not None and torch.equal(weights(task.interpolator), weights(tiny_interpolator()))
    assert not any(name.startswith("interpolator") for name in task.tensors())


def test_one_that_nothing_would_teach_is_refused() -> None:
    with pytest.raises(ValueError, match="interpolator is trained, and no stage runs at half rate"):
        load_recipe("avd", ["rollout.interpolator=trained"])
