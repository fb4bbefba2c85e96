"""Measured gradients of terms are those that autograd gives, however the batch is cut, and change nothing."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from avd.distillation.gradients import TermGradients
from avd.flow import add_noise, velocity_of, x0_from_velocity
from avd.objectives.temporal import temporal_regularization
from helpers.cycles import make_batch, make_cycle, update_random


def test_a_gradient_rms_is_the_gradient_of_a_samples_own_loss() -> None:
    term_gradients, x = TermGradients(), torch.randn(3, 2, 4, 2, 2, requires_grad=True)
    (2.0 * term_gradients.on_video("square", x).square().flatten(1).mean(1).mean()).backward()
    assert term_gradients.pop_metrics() == {"square_gradient_rms": pytest.approx((4 * x).square().mean().sqrt().item())}
    assert term_gradients.pop_metrics() == {}


def test_terms_on_one_leaf_are_told_apart_and_their_gradients_pass_unchanged() -> None:
    def gradient(term_gradients: TermGradients | None) -> Tensor:
        leaf = torch.linspace(-1, 1, 32).reshape(1, 2, 4, 2, 2).requires_grad_()
        for name, term in (("a", lambda x: x.square().mean()), ("b", lambda x: 3 * x.sum())):
            term(leaf if term_gradients is None else term_gradients.on_video(name, leaf)).backward()
        assert leaf.grad is not None
        return leaf.grad

    term_gradients = TermGradients()
    assert torch.equal(gradient(term_gradients), gradient(None))
    assert term_gradients.pop_metrics()["b_gradient_rms"] == pytest.approx(3 * 32)


def test_a_gradient_rms_on_the_velocity_is_that_on_the_clean_video() -> None:
    x0, eps = torch.randn(2, 4, 1, 3, 2, 2)
    sigma, v = torch.tensor([0.9, 0.5, 1.0, 0.7]), torch.randn(4, 1, 3, 2, 2)
    term_gradients, velocity = TermGradients(), v.clone().requires_grad_()
    (term_gradients.on_velocity("reg", velocity, sigma) - velocity_of(x0, eps)).square().mean().backward()
    noisy = add_noise(x0, eps, sigma)
    clean = x0_from_velocity(noisy, v, sigma).requires_grad_()
    ((noisy - clean) / sigma.view(-1, 1, 1, 1, 1) - velocity_of(x0, eps)).square().mean().backward()
    assert clean.grad is not None
    assert term_gradients.pop_metrics()["reg_gradient_rms"] == pytest.approx(
        (clean.grad * clean.numel()).square().mean().sqrt().item(), rel=1e-5
    )


def test_parts_of_a_batch_have_the_rms_of_the_full_one() -> None:
    x, full, parted = torch.randn(4, 1, 3, 2, 2), TermGradients(), TermGradients()
    full.on_video("t", x.requires_grad_()).pow(4).mean().backward()
    for part in x.detach().split(2):
        (parted.on_video("t", part.requires_grad_()).pow(4).mean() / 2).backward()
    assert parted.pop_metrics()["t_gradient_rms"] == pytest.approx(full.pop_metrics()["t_gradient_rms"])


def test_parts_of_a_gradient_are_averaged_over_the_batch() -> None:
    gradients = TermGradients()
    gradients.add_part("t_half", torch.tensor([1.0, 4.0]), 3)
    gradients.add_part("t_half", torch.tensor([4.0]), 3)
    assert gradients.pop_metrics() == {"t_half_gradient_rms": pytest.approx(3**0.5)}
    assert gradients.pop_metrics() == {}


def test_what_carries_no_gradient_passes() -> None:
    x = torch.randn(2, 1, 1, 1, 1)
    assert TermGradients().on_video("t", x) is x


def test_a_cycle_tells_the_gradient_rms_of_every_term() -> None:
    cycle = make_cycle("objective.temporal.weight=0.3")
    seen: dict[str, Tensor] = {}
    gradients = cycle.step._gradients
    original = gradients.on_video

    def watched(name: str, x: Tensor) -> Tensor:
        seen[name] = x.detach().clone().requires_grad_()
        return original(name, x)

    gradients.on_video = watched  # type: ignore[method-assign]
    metrics = cycle.run(make_batch(cycle.recipe), update_random())
    sample = seen["temporal"]
    (0.3 * temporal_regularization(sample, truncation=-10.0).per_sample_B.mean()).backward()
    assert sample.grad is not None
    expected = (sample.grad * sample.numel()).square().mean().sqrt().item()
    assert metrics["temporal_gradient_rms"] == pytest.approx(expected, rel=1e-4)
    assert metrics["regression_gradient_rms"] > 0
    # Eq. 8 of DMD: loss = 1/2 mean g^2, so its gradient's is the root mean square of g.
    assert metrics["distribution_matching_gradient_rms"] == pytest.approx(
        (2 * metrics["distribution_matching"]) ** 0.5, rel=1e-4
    )


def test_a_term_left_out_has_no_gradient_rms() -> None:
    cycle = make_cycle("objective.temporal.weight=0", "objective.regression.weight=0")
    metrics = cycle.run(make_batch(cycle.recipe), update_random())
    assert {name for name in metrics if name.endswith("_gradient_rms")} == {
        "distribution_matching_gradient_rms",
        "distribution_matching_unguided_gradient_rms",
        "distribution_matching_guidance_gradient_rms",
    }


@pytest.mark.parametrize("changes", [(), ("compute.microbatch=1",)])
def test_the_parts_of_distribution_matching_weigh_as_the_term_does(changes: tuple[str, ...]) -> None:
    """Without guidance all of the gradient is the unguided part; with it, the two parts' triangle closes."""

    def parts(*overrides: str) -> tuple[float, float, float]:
        cycle = make_cycle(*overrides, *changes)
        metrics = cycle.run(make_batch(cycle.recipe), update_random())
        names = ("", "_unguided", "_guidance")
        full, unguided, guidance = (metrics[f"distribution_matching{name}_gradient_rms"] for name in names)
        return full, unguided, guidance

    full, unguided, guidance = parts("objective.distribution_matching.guidance=1")
    assert guidance == 0.0 and unguided == pytest.approx(full, rel=1e-4)
    full, unguided, guidance = parts()
    assert unguided > 0 and guidance > 0
    assert abs(unguided - guidance) <= full <= unguided + guidance
    doubled = parts("objective.distribution_matching.weight=2")
    assert doubled == pytest.approx([2 * full, 2 * unguided, 2 * guidance], rel=1e-4)


def test_a_truncated_term_gradient_rmss_no_more() -> None:
    cycle = make_cycle("objective.temporal.truncation=100")
    assert cycle.run(make_batch(cycle.recipe), update_random())["temporal_gradient_rms"] == 0.0
