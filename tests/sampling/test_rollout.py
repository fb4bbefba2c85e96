"""The few-step rollout against a reference written out by hand."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from avd.flow import add_noise, integrate, subsample
from avd.sampling.rollout import Interpolate, Rollout, falling_levels, make_stages
from avd.types import Conditions, Transition
from helpers.gaussian import GaussianVelocity

SIGMAS = (1.0, 0.9, 0.7, 0.5)
SHAPE = (2, 3, 5, 2, 2)
PROMPT = Conditions({"embedding": torch.zeros(2, 4, 8)})


class GaussianStudent(nn.Module):
    """The exact velocity of data ~ N(mean + slope * position, std^2), position counted in full-rate frames.

    It keeps what it was called with. `mean` is a parameter, to see where gradient goes. Positions of rows and columns
    count too, each with a slope of its own.
    """

    def __init__(self, std: float = 0.5, slope: float = 0.3) -> None:
        super().__init__()
        self.mean, self.std, self.slope = nn.Parameter(torch.tensor(1.0)), std, slope
        self.calls: list[tuple[float, int, int]] = []
        self.pictures: list[tuple[int, int, int]] = []
        self.inputs: list[Tensor] = []
        self.with_gradient: list[bool] = []

    def forward(
        self, x: Tensor, sigma_B: Tensor, conditions: Conditions, *, frame_stride: int = 1, space_stride: int = 1
    ) -> Tensor:
        self.calls.append((round(sigma_B[0].item(), 6), frame_stride, x.shape[2]))
        self.pictures.append((space_stride, x.shape[3], x.shape[4]))
        self.inputs.append(x.detach().clone())
        self.with_gradient.append(torch.is_grad_enabled())
        frame, row, column = torch.meshgrid(*map(torch.arange, x.shape[2:]), indexing="ij")
        position = frame * frame_stride + (10 * row + 20 * column) * space_stride
        return self.velocity(x, sigma_B[0].item(), position)

    def velocity(self, x: Tensor, s: float, position: Tensor) -> Tensor:
        mean = self.mean + self.slope * position
        variance = (1 - s) ** 2 * self.std**2 + s**2
        return -mean + (s - (1 - s) * self.std**2) / variance * (x - (1 - s) * mean)


class Midpoints(nn.Module):
    """Fills each missing frame with the mean of its neighbours, times a parameter that is 1; rows and columns by
    repeating those before them."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(1.0))
        self.inputs: list[Tensor] = []
        self.asked: list[tuple[bool, bool]] = []

    def forward(self, x: Tensor, *, frames: bool = True, space: bool = False) -> Tensor:
        self.inputs.append(x.detach().clone())
        self.asked.append((frames, space))
        if space:
            x = x.repeat_interleave(2, 3).repeat_interleave(2, 4)
        if not frames:
            return x
        between = self.factor * (x[:, :, 1:] + x[:, :, :-1]) / 2
        paired = torch.stack([x[:, :, :-1], between], dim=3).flatten(2, 3)
        return torch.cat([paired, x[:, :, -1:]], dim=2)


def renoise(stage: int) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(stage))


def leave_at(
    rollout: Rollout, student: GaussianStudent, stage: int, *, gradient: bool = False, noise: Tensor | None = None
) -> Tensor:
    """What a rollout predicts at `stage`."""
    x = rollout.run_until(student, torch.randn(SHAPE) if noise is None else noise, PROMPT, renoise, stage)
    return rollout.predict(student, x, PROMPT, stage, gradient=gradient)


def everywhere() -> Tensor:
    """Positions (F, H, W) of all frames, rows and columns."""
    frame, row, column = torch.meshgrid(*map(torch.arange, SHAPE[2:]), indexing="ij")
    return frame + 10 * row + 20 * column


def reference(
    student: GaussianStudent, noise: Tensor, half_rate: int, half_resolution: int, interpolate: Interpolate
) -> Tensor:
    """x0 = x - sigma v, then x = (1 - sigma') x0 + sigma' eps; written without the code under test."""
    x0 = noise  # only its place is needed: the first stage starts from pure noise
    for i, sigma in enumerate(SIGMAS):
        s, r = 2 if i < half_rate else 1, 2 if i < half_resolution else 1
        if i == 0:
            x = noise[:, :, ::s, ::r, ::r]
        else:
            if i == half_resolution:
                x0 = interpolate(x0, frames=False, space=True)
            if i == half_rate:
                x0 = interpolate(x0, frames=True, space=False)
            eps = renoise(i)[:, :, ::s, ::r, ::r]
            x = (1 - sigma) * x0 + sigma * eps
        x0 = x - sigma * student.velocity(x, sigma, everywhere()[::s, ::r, ::r])
    return x0


@pytest.mark.parametrize("half_resolution", [0, 1, 2])
@pytest.mark.parametrize("half_rate", [0, 1, 2, 3])
def test_steps_match_a_reference_written_by_hand(half_rate: int, half_resolution: int) -> None:
    student, interpolate, noise = GaussianStudent(), Midpoints(), torch.randn(SHAPE)
    stages = make_stages(SIGMAS, half_rate, half_resolution)
    found = Rollout(stages, interpolate)(student, noise, PROMPT, renoise)
    torch.testing.assert_close(found, reference(student, noise, half_rate, half_resolution, interpolate).detach())
    assert found.shape == noise.shape and not found.requires_grad


def test_space_and_frames_are_filled_where_their_own_stages_end() -> None:
    student, interpolate = GaussianStudent(), Midpoints()
    rollout = Rollout(make_stages(SIGMAS, 2, 1), interpolate)
    leave_at(rollout, student, 3)
    assert interpolate.asked == [(False, True), (True, False)]
    assert student.pictures == [(2, 1, 1), (1, 2, 2), (1, 2, 2), (1, 2, 2)]
    interpolate.asked.clear()
    assert leave_at(rollout, student, 0).shape == SHAPE and interpolate.asked == [(True, True)]


def test_subsampled_noise_is_unit_noise_and_keeps_its_level() -> None:
    """Subsampling commutes with noising, and leaves noise of unit variance without correlation; an average does not."""
    generator = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, 4, 5, 32, 32, generator=generator), torch.randn(2, 4, 5, 32, 32, generator=generator)
    noisy = add_noise(x0, eps, 0.7)
    thin = subsample(eps, 2, 2)
    torch.testing.assert_close(subsample(noisy, 2, 2), add_noise(subsample(x0, 2, 2), thin, 0.7))
    assert thin.shape == (2, 4, 3, 16, 16) and thin.std().item() == pytest.approx(1.0, abs=0.03)
    assert (thin[..., 1:] * thin[..., :-1]).mean().abs().item() < 0.03
    pooled = functional.avg_pool3d(eps, (1, 2, 2))
    assert pooled.std().item() == pytest.approx(0.5, abs=0.02)


def test_one_stage_is_one_prediction() -> None:
    student, noise = GaussianStudent(), torch.randn(SHAPE)
    found = Rollout(make_stages((1.0,)))(student, noise, PROMPT, renoise)
    position = everywhere()
    torch.testing.assert_close(found, noise - student.velocity(noise, 1.0, position).detach())
    assert len(student.calls) == 1


def test_a_point_mass_is_reached_in_any_number_of_steps() -> None:
    """Data without spread: every prediction is the data itself."""
    found = Rollout(make_stages(SIGMAS))(GaussianStudent(std=0.0, slope=0.0), torch.randn(SHAPE), PROMPT, renoise)
    torch.testing.assert_close(found, torch.ones(SHAPE))


@pytest.mark.parametrize("exit_stage", [0, 1, 2, 3])
@pytest.mark.parametrize("half_rate_stages", [0, 2])
def test_stages_past_the_exit_are_not_run(exit_stage: int, half_rate_stages: int) -> None:
    student, interpolate = GaussianStudent(), Midpoints()
    rollout = Rollout(make_stages(SIGMAS, half_rate_stages), interpolate)
    found = leave_at(rollout, student, exit_stage)
    half, full = (2, 3), (1, 5)  # (stride, frames)
    expected = [(sigma, *(half if i < half_rate_stages else full)) for i, sigma in enumerate(SIGMAS)]
    assert student.calls == expected[: exit_stage + 1]
    assert found.shape == SHAPE
    assert len(interpolate.inputs) == (half_rate_stages > 0)


@pytest.mark.parametrize("exit_stage", [0, 1, 3])
@pytest.mark.parametrize("half_rate_stages", [0, 2])
def test_gradient_goes_through_the_exit_stage_alone(exit_stage: int, half_rate_stages: int) -> None:
    """d x0 / d mean of the last prediction only, its input held constant."""
    student, interpolate = GaussianStudent(), Midpoints()
    rollout = Rollout(make_stages(SIGMAS, half_rate_stages), interpolate)
    found = leave_at(rollout, student, exit_stage, gradient=True)
    assert student.with_gradient == [False] * exit_stage + [True]
    (gradient,) = torch.autograd.grad(found.mean(), student.mean)
    sigma = SIGMAS[exit_stage]
    noise_share = (sigma - (1 - sigma) * student.std**2) / ((1 - sigma) ** 2 * student.std**2 + sigma**2)
    assert gradient.item() == pytest.approx(sigma * (1 + noise_share * (1 - sigma)), rel=1e-5)


def test_gradient_flows_through_the_interpolator_at_a_half_rate_exit() -> None:
    student, interpolate = GaussianStudent(), Midpoints()
    rollout = Rollout(make_stages(SIGMAS, 2), interpolate)
    found = leave_at(rollout, student, 1, gradient=True)
    between = torch.autograd.grad(found[:, :, 1::2].mean(), student.mean)[0]
    assert between.item() > 0


@pytest.mark.parametrize("exit_stage", [1, 3])
def test_without_gradient_not_even_the_interpolator_has_one(exit_stage: int) -> None:
    rollout = Rollout(make_stages(SIGMAS, 2), Midpoints())
    assert not leave_at(rollout, GaussianStudent(), exit_stage).requires_grad


def test_an_earlier_fill_carries_no_gradient() -> None:
    """An interpolator that is itself trainable gets none from a later, full-rate exit."""
    interpolate = Midpoints()
    rollout = Rollout(make_stages(SIGMAS, 2), interpolate)
    leave_at(rollout, GaussianStudent(), 3, gradient=True).sum().backward()
    assert interpolate.factor.grad is None


def test_half_rate_stages_see_every_second_frame_of_the_same_noise() -> None:
    noise = torch.randn(SHAPE)
    full, half = GaussianStudent(std=0.0, slope=0.0), GaussianStudent(std=0.0, slope=0.0)
    Rollout(make_stages(SIGMAS))(full, noise, PROMPT, renoise)
    Rollout(make_stages(SIGMAS, 2), Midpoints())(half, noise, PROMPT, renoise)
    assert torch.equal(half.inputs[0], noise[:, :, [0, 2, 4]])
    for stage in (1, 2, 3):  # a point mass predicts the same x0 at either rate, so inputs differ only by their noise
        seen = full.inputs[stage][:, :, ::2] if stage < 2 else full.inputs[stage]
        torch.testing.assert_close(half.inputs[stage], seen)


def test_the_missing_frames_are_filled_once_before_the_first_full_rate_stage() -> None:
    student, interpolate = GaussianStudent(), Midpoints()
    Rollout(make_stages(SIGMAS, 2), interpolate)(student, torch.randn(SHAPE), PROMPT, renoise)
    (given,) = interpolate.inputs
    position = everywhere()[::2]
    x = student.inputs[1]
    torch.testing.assert_close(given, (x - 0.9 * student.velocity(x, 0.9, position)).detach())


def test_exits_share_their_first_stages() -> None:
    early, late, noise = GaussianStudent(), GaussianStudent(), torch.randn(SHAPE)
    rollout = Rollout(make_stages(SIGMAS))
    leave_at(rollout, early, 1, noise=noise)
    leave_at(rollout, late, 3, noise=noise)
    assert all(torch.equal(a, b) for a, b in zip(early.inputs, late.inputs[:2], strict=True))


def test_half_rate_needs_an_odd_number_of_latent_frames() -> None:
    with pytest.raises(ValueError, match="4 latent frames"):
        Rollout(make_stages(SIGMAS, 2), Midpoints())(GaussianStudent(), torch.randn(2, 3, 4, 2, 2), PROMPT, renoise)
    even = torch.randn(2, 3, 4, 2, 2)
    assert (
        Rollout(make_stages(SIGMAS))(GaussianStudent(), even, PROMPT, lambda _: torch.randn_like(even)).shape
        == even.shape
    )


def test_half_resolution_needs_even_sides() -> None:
    with pytest.raises(ValueError, match="latents of 2 x 3"):
        odd = torch.randn(2, 3, 5, 2, 3)
        Rollout(make_stages(SIGMAS, 0, 1), Midpoints())(GaussianStudent(), odd, PROMPT, renoise)


@pytest.mark.parametrize("strided", [(1, 0), (0, 1)])
def test_strided_stages_need_an_interpolator(strided: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="need an interpolator"):
        Rollout(make_stages(SIGMAS, *strided))


# -- Euler's steps -------------------------------------------------------------------------------------------------


def no_noise(stage: int) -> Tensor:
    raise AssertionError(f"stage {stage} asked for noise")


def test_eulers_steps_are_those_of_the_flow_and_need_no_noise() -> None:
    student, noise = GaussianStudent(), torch.randn(SHAPE)
    found = Rollout(make_stages(SIGMAS), transition="euler")(student, noise, PROMPT, no_noise)
    expected = integrate(lambda x, s: student(x, s, PROMPT), noise, torch.tensor([*SIGMAS, 0.0], dtype=torch.float64))
    torch.testing.assert_close(found, expected)
    assert not found.requires_grad


def test_an_euler_step_is_re_noising_with_the_noise_that_the_velocity_implies() -> None:
    student, noise = GaussianStudent(), torch.randn(SHAPE)
    euler = Rollout(make_stages(SIGMAS), transition="euler").run_until(student, noise, PROMPT, no_noise, 3)

    def implied(stage: int) -> Tensor:
        x, s = student.inputs[-1], SIGMAS[stage - 1]
        return (x + (1 - s) * student.velocity(x, s, everywhere())).detach()

    torch.testing.assert_close(Rollout(make_stages(SIGMAS)).run_until(student, noise, PROMPT, implied, 3), euler)


@pytest.mark.parametrize("exit_stage", [0, 2])
def test_an_exit_of_an_euler_path_is_the_clean_video_with_the_gradient_of_its_stage(exit_stage: int) -> None:
    student, noise = GaussianStudent(), torch.randn(SHAPE)
    rollout = Rollout(make_stages(SIGMAS), transition="euler")
    x = rollout.run_until(student, noise, PROMPT, no_noise, exit_stage)
    found = rollout.predict(student, x, PROMPT, exit_stage, gradient=True)
    assert student.with_gradient == [False] * exit_stage + [True]
    sigma = SIGMAS[exit_stage]
    torch.testing.assert_close(found, x - sigma * student.velocity(x, sigma, everywhere()))


@pytest.mark.parametrize("strided", [(1, 0), (0, 1)])
def test_euler_steps_are_refused_at_half_rate_and_resolution(strided: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="full stages only with Euler steps"):
        Rollout(make_stages(SIGMAS, *strided), Midpoints(), "euler")


@pytest.mark.parametrize("trained_for", ["renoise", "euler"])
def test_each_exact_student_samples_the_data_by_its_own_transition_and_not_by_the_other(
    trained_for: Transition,
) -> None:
    """A consistency model's clean video is its path's end, re-noised; that of phases is a point at the next edge."""
    data, many = GaussianVelocity(1.0, 0.5), (1, 1, 1, 200, 200)
    edges = dict(pairwise((*SIGMAS, 0.0)))

    def exact(
        x: Tensor, sigma_B: Tensor, conditions: Conditions, *, frame_stride: int = 1, space_stride: int = 1
    ) -> Tensor:
        above = sigma_B[0].item()
        below = 0.0 if trained_for == "renoise" else next(b for a, b in edges.items() if abs(a - above) < 1e-6)
        return (x - data.along(x, above, below)) / (above - below)

    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(many, generator=generator)
    for transition in ("renoise", "euler"):
        rollout = Rollout(make_stages(SIGMAS), transition=transition)  # type: ignore[arg-type]
        found = rollout(exact, noise, PROMPT, lambda stage: torch.randn(many, generator=generator))
        error = abs(found.std().item() - 0.5)  # of 40,000 values: 0.002 of it is chance
        assert found.mean().item() == pytest.approx(1.0, abs=0.01)
        assert error < 0.005 if transition == trained_for else error > 0.04


def test_drawn_levels_begin_at_the_first_stage_and_never_rise() -> None:
    levels = falling_levels(0.99, (0.5, 0.9, 0.25), 3.0)
    assert levels == pytest.approx((0.99, 0.75, 0.75, 0.5))  # 3u / (1 + 2u), of which the second is above the first
    assert falling_levels(0.5, (0.9,), 1.0) == (0.5, 0.5)
    rollout = Rollout(make_stages(SIGMAS, 2), Midpoints()).at(levels)
    assert [(stage.sigma, stage.frame_stride) for stage in rollout.stages] == list(
        zip(levels, (2, 2, 1, 1), strict=True)
    )
    student = GaussianStudent()
    leave_at(rollout, student, 3)
    assert [sigma for sigma, *_ in student.calls] == pytest.approx(levels)
    part = Rollout(make_stages(SIGMAS)[:2], transition="euler", trained=range(1, 2), end=0.5).at((0.9, 0.8))
    assert (part.trained, part.end) == (range(1, 2), 0.5)


@pytest.mark.parametrize("seed", range(3))
def test_an_exact_student_samples_the_data_at_any_levels(seed: int) -> None:
    data, many, generator = GaussianVelocity(1.0, 0.5), (1, 1, 1, 200, 200), torch.Generator().manual_seed(seed)

    def exact(x: Tensor, sigma_B: Tensor, conditions: Conditions, **strides: int) -> Tensor:
        return data.to_clean(x, sigma_B)

    levels = falling_levels(1.0, torch.rand(3, generator=generator).tolist(), 5.0)
    rollout, noise = Rollout(make_stages(SIGMAS)).at(levels), torch.randn(many, generator=generator)
    found = rollout(exact, noise, PROMPT, lambda stage: torch.randn(many, generator=generator))
    assert found.mean().item() == pytest.approx(1.0, abs=0.01)
    assert found.std().item() == pytest.approx(0.5, abs=0.006)


@pytest.mark.parametrize("half_rate_stages", [-1, 4])
def test_the_last_stage_is_full(half_rate_stages: int) -> None:
    with pytest.raises(ValueError, match=r"half_rate_stages is .* 0 to 3"):
        make_stages(SIGMAS, half_rate_stages)
    with pytest.raises(ValueError, match=r"half_resolution_stages is .* 0 to 3"):
        make_stages(SIGMAS, 0, half_rate_stages)
