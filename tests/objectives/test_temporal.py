"""Temporal regularization: values on known variances, and where truncation stops it."""

from __future__ import annotations

import math
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import Tensor

from avd.config import load_recipe
from avd.distillation.preflight import check_frames
from avd.methods.method import Method
from avd.objectives.temporal import TERM, Counts, counted, frame_motion, frame_variance, temporal_regularization
from avd.objectives.term import Sample, Setting
from avd.types import UserError
from helpers.cycles import make_batch, make_cycle, random_for_exit


def alternating(amplitude: float, batch: int = 2, frames: int = 4) -> Tensor:
    """Frames at +amplitude and -amplitude in turn: variance amplitude^2, whatever the content."""
    signs = torch.tensor([1.0, -1.0]).repeat(frames // 2).view(1, 1, frames, 1, 1)
    return torch.randn(batch, 3, 1, 2, 2) + amplitude * signs


def loss_of(x: Tensor, truncation: float = -math.inf) -> Tensor:
    return temporal_regularization(x, truncation=truncation).per_sample_B.mean()


def test_variance_is_numpys_over_frames() -> None:
    x = torch.randn(2, 3, 5, 2, 2)
    expected = np.var(x.numpy(), axis=2).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(frame_variance(x).numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize("amplitude", [0.1, 1.0, 3.0])
def test_value_on_a_known_variance(amplitude: float) -> None:
    term = temporal_regularization(alternating(amplitude), eps=0.01)
    torch.testing.assert_close(term.per_sample_B, torch.full((2,), -math.log(amplitude**2 + 0.01)))
    assert term.metrics["temporal_variance"] == pytest.approx(amplitude**2, rel=1e-5)


def test_the_expectation_stands_inside_the_logarithm() -> None:
    """One loss a batch, of the batch's mean variance; not the mean of the samples' losses."""
    x = torch.cat([alternating(0.5, 1), alternating(2.0, 1)])
    term = temporal_regularization(x)
    torch.testing.assert_close(term.per_sample_B, torch.full((2,), -math.log((0.25 + 4.0) / 2 + 1e-6)))


def test_descent_adds_motion() -> None:
    x = alternating(0.5).requires_grad_()
    loss_of(x).backward()
    assert x.grad is not None
    assert loss_of((x - 0.1 * x.grad).detach()) < loss_of(x)


def test_below_the_truncation_the_gradient_is_exactly_zero() -> None:
    truncation = 0.6
    moving = alternating(math.sqrt(math.exp(-0.5))).requires_grad_()  # plain loss 0.5
    loss = loss_of(moving, truncation)
    loss.backward()
    assert loss.item() == pytest.approx(truncation)
    assert moving.grad is not None and moving.grad.abs().max() == 0


def test_above_the_truncation_nothing_changes() -> None:
    x = alternating(math.sqrt(math.exp(-0.7)))  # plain loss 0.7
    plain, truncated = x.clone().requires_grad_(), x.clone().requires_grad_()
    loss_of(plain).backward()
    loss_of(truncated, 0.6).backward()
    assert plain.grad is not None and truncated.grad is not None
    torch.testing.assert_close(truncated.grad, plain.grad, rtol=0, atol=0)


def test_a_static_video_has_a_finite_loss_and_no_gradient() -> None:
    """Variance is flat at a constant input: a student that is exactly static is not moved by this loss."""
    x = torch.randn(2, 3, 1, 2, 2).expand(2, 3, 5, 2, 2).clone().requires_grad_()
    loss = loss_of(x)
    loss.backward()
    assert loss.item() == pytest.approx(-math.log(1e-6), rel=1e-4)
    assert x.grad is not None and x.grad.isfinite().all() and x.grad.abs().max() < 1e-2


# -- motion, not flicker ------------------------------------------------------------------------------------------


def moving(batch: int = 1, frames: int = 8, speed: float = 1.0) -> Tensor:
    """A soft bright spot that crosses a plane of 16 x 16 places, `speed` places per frame."""
    rows, columns = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    spots = [(-((rows - 8) ** 2 + (columns - 4 - speed * f) ** 2) / 8).exp() for f in range(frames)]
    return torch.stack(spots).view(1, 1, frames, 16, 16).repeat(batch, 1, 1, 1, 1)


def flickering(batch: int, frames: int, amplitude: float = 1.0) -> Tensor:
    """A still picture with noise of its own in every frame."""
    generator = torch.Generator().manual_seed(0)
    still = torch.randn(batch, 1, 1, 16, 16, generator=generator)
    return still + amplitude * torch.randn(batch, 1, frames, 16, 16, generator=generator)


@pytest.mark.parametrize("frames", [3, 5, 21])
def test_motion_is_the_variance_less_half_the_mean_square_step(frames: int) -> None:
    x = torch.randn(2, 3, frames, 2, 2, dtype=torch.float64).numpy()
    expected = (np.var(x, axis=2, ddof=1) - np.mean(np.diff(x, axis=2) ** 2, axis=2) / 2).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(frame_motion(torch.from_numpy(x)).numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("frames", [3, 5, 21])
def test_noise_of_each_frames_own_is_no_motion(frames: int) -> None:
    x = flickering(64, frames)
    assert frame_variance(x).mean() > 0.6
    assert abs(frame_motion(x).mean()) < 0.02


def test_a_moving_spot_keeps_most_of_its_variance_and_frames_in_turn_lose_it() -> None:
    assert frame_motion(moving()) > 0.7 * frame_variance(moving())
    assert frame_motion(moving(speed=0.0)).abs() < 1e-6
    assert frame_motion(alternating(1.0, frames=8)).max() < -0.5


@pytest.mark.parametrize(("counts", "pays"), [("change", True), ("motion", False)])
def test_only_variance_pays_for_noise(counts: Counts, pays: bool) -> None:
    """Both losses fall when the spot moves faster; noise in every frame lowers only the variance's."""

    def loss(x: Tensor) -> float:
        return temporal_regularization(x, counts=counts).per_sample_B[0].item()

    slow = moving(16, speed=0.5)
    noise = flickering(16, 8, 0.1) - flickering(16, 8, 0.0)
    assert loss(moving(16)) < loss(slow) - 0.3
    assert (loss(slow + noise) < loss(slow) - 0.3) is pays


def test_descent_on_motion_damps_flicker_and_keeps_the_spot_moving() -> None:
    noise = flickering(4, 8, 0.1) - flickering(4, 8, 0.0)
    x = (moving(4) + noise).requires_grad_()
    temporal_regularization(x, counts="motion").per_sample_B.mean().backward()
    assert x.grad is not None
    step = -x.grad / x.grad.abs().max()
    assert (step.diff(dim=2) * noise.diff(dim=2)).mean() < 0  # neighbours' noise comes closer
    assert (step * (moving(4) - moving(4).mean(2, keepdim=True))).mean() > 0  # and the spot's change grows


def test_where_all_is_flicker_the_loss_is_finite_continuous_and_falls_with_motion() -> None:
    still, worse = torch.zeros(1, 1, 8, 16, 16), alternating(1.0, 1, frames=8)
    for x in (still, worse):
        x = x.clone().requires_grad_()
        loss = temporal_regularization(x, counts="motion").per_sample_B.mean()
        loss.backward()
        assert loss.isfinite() and x.grad is not None and x.grad.isfinite().all()
    amount = torch.linspace(0.0, 1.0, 400)
    losses = torch.tensor(
        [
            temporal_regularization(worse + 8 * a * moving()[:, :, :, :2, :2], counts="motion").per_sample_B[0]
            for a in amount
        ]
    )
    assert losses.diff().abs().max() < 0.2  # no jump where the tangent meets the logarithm


# -- thresholds ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("counts", ["change", "motion"])
def test_a_sample_that_moves_as_its_clip_is_left_alone(counts: Counts) -> None:
    """The first moves less than its clip, the second more, and the third's clip is still."""
    x = torch.cat([0.5 * moving(), 2.0 * moving(), 0.1 * moving()]).requires_grad_()
    enough_B = counted(torch.cat([moving(), moving(), moving(speed=0.0)]), counts)
    term = temporal_regularization(x, counts=counts, enough_B=enough_B)
    term.per_sample_B.mean().backward()
    assert x.grad is not None
    assert [bool(each.abs().max() > 1e-6) for each in x.grad] == [True, False, False]
    found = torch.minimum(counted(x.detach(), counts), enough_B).mean()
    assert term.metrics["temporal_variance"] == pytest.approx(found.item())


@pytest.mark.parametrize("counts", ["change", "motion"])
def test_the_datas_threshold_is_what_counts_of_the_data(counts: Counts) -> None:
    real = flickering(3, 5, 0.2) + moving(3, 5)
    section = TERM.section(truncation="data", counts=counts)  # type: ignore[call-arg]
    term = TERM.make(section, Setting((1.0,), real_latents=lambda count: real))
    lively = Sample(9 * moving(2, 5), None, None)  # type: ignore[arg-type]
    found = temporal_regularization(real, counts=counts).per_sample_B[0]
    assert term(lively).per_sample_B[0] == found


def test_a_clip_too_short_for_motion_is_refused_before_anything_is_loaded() -> None:
    recipe = load_recipe("avd", ["objective.temporal.counts=motion"])
    for frames, refused in ((2, True), (3, False)):
        with pytest.raises(UserError, match="of 2 latent frames") if refused else nullcontext():
            check_frames(recipe, frames)


def test_a_threshold_by_clip_pairs_the_rollouts_with_them() -> None:
    """The step hands the term its real clips, in one part and in two; frames that move as these are left alone."""
    changes = ("objective.temporal.truncation=clip", "objective.temporal.weight=1.0")
    assert Method.of(load_recipe("avd", changes)).paired and not Method.of(load_recipe("avd")).paired
    found = []
    for more in ((), ("compute.microbatch=2",)):
        cycle = make_cycle(*changes, *more)
        batch = make_batch(cycle.recipe)
        found.append(cycle.run(batch, random_for_exit(1)))
    assert found[1] == pytest.approx(found[0], rel=1e-4)
    assert found[0]["temporal_variance"] <= frame_variance(batch.rollout_latents[0]).mean().item() + 1e-6
