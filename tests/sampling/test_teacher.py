"""The many-step teacher on a network whose solution is known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from avd.flow import many_step_sigmas
from avd.sampling.teacher import guided, sample_teacher
from avd.types import Conditions

SHAPE = (3, 2, 5, 2, 2)


class PointMass:
    """The exact velocity of data that is one point: the mean of the sample's prompt."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.sigmas: list[float] = []

    def __call__(
        self, x_BCFHW: Tensor, sigma_B: Tensor, conditions: Conditions, *, frame_stride: int = 1, space_stride: int = 1
    ) -> Tensor:
        self.batches.append(len(x_BCFHW))
        self.sigmas.append(sigma_B[0].item())
        return (x_BCFHW - conditions["embedding"].mean((1, 2)).view(-1, 1, 1, 1, 1)) / sigma_B.view(-1, 1, 1, 1, 1)


def prompts() -> tuple[Conditions, Conditions]:
    embedding = torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1).expand(3, 4, 8)
    return Conditions({"embedding": embedding}), Conditions({"embedding": torch.full((1, 4, 8), 0.5)})


@pytest.mark.parametrize("scale", [0.0, 1.0, 4.0])
def test_guidance_is_the_usual_convention_for_every_sample(scale: float) -> None:
    prompt, null = prompts()
    x, sigma = torch.randn(SHAPE), torch.tensor([0.3, 0.6, 1.0])
    network = PointMass()
    found = guided(network, x, sigma, prompt, null, scale).velocity
    cond, uncond = PointMass()(x, sigma, prompt), PointMass()(x, sigma, null.expand(3))
    torch.testing.assert_close(found, uncond + scale * (cond - uncond))
    assert network.batches == ([3] if scale == 1 else [6])


def test_a_guided_point_mass_ends_at_the_guided_point() -> None:
    """Both branches are linear in x, so their guided sum is the velocity of the guided point."""
    prompt, null = prompts()
    network = PointMass()
    found = sample_teacher(network, torch.randn(SHAPE), prompt, null, steps=6, guidance=3.0, shift=5.0)
    expected = (0.5 + 3.0 * (torch.tensor([1.0, 2.0, 3.0]) - 0.5)).view(3, 1, 1, 1, 1).expand(SHAPE)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    assert network.sigmas == pytest.approx(many_step_sigmas(6, 5.0)[:-1].tolist())
