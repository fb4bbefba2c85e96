"""Relation of frames against its formula, its zero and its direction."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from avd.objectives.relation import frame_cosines, relation

SHAPE = (2, 3, 4, 2, 5)


def clips() -> tuple[Tensor, Tensor, Tensor]:
    """Samples, and what fake score and teacher see."""
    return torch.randn(SHAPE), torch.randn(SHAPE), torch.randn(SHAPE)


def reference(x: Tensor, fake: Tensor, teacher: Tensor, temperature: float) -> list[float]:
    """Frame by frame and clip by clip."""

    def cosine(clip: Tensor, i: int, j: int) -> Tensor:
        a, b = clip[:, i].mean((1, 2)), clip[:, j].mean((1, 2))
        return (a @ b) / (a.norm() * b.norm())

    losses = []
    for own, seen, wanted in zip(x, fake, teacher, strict=True):
        total = 0.0
        for i in range(own.shape[1]):
            row = torch.stack([cosine(own, i, j) for j in range(own.shape[1])])
            moved = torch.stack([row[j] - cosine(seen, i, j) + cosine(wanted, i, j) for j in range(own.shape[1])])
            p, q = (moved / temperature).softmax(0), (row / temperature).softmax(0)
            total += float((p * (p / q).log()).sum())
        losses.append(total / own.shape[1])
    return losses


@pytest.mark.parametrize("temperature", [0.1, 0.7])
def test_value_is_the_papers(temperature: float) -> None:
    x, fake, teacher = clips()
    term = relation(x, fake_BCFHW=fake, teacher_BCFHW=teacher, temperature=temperature)
    assert term.per_sample_B.tolist() == pytest.approx(reference(x, fake, teacher, temperature), rel=1e-4)


def test_agreeing_scores_leave_samples_alone() -> None:
    x, fake, _ = clips()
    x.requires_grad_()
    term = relation(x, fake_BCFHW=fake, teacher_BCFHW=3 * fake)  # the same cosines
    (gradient,) = torch.autograd.grad(term.per_sample_B.sum(), x)
    assert term.per_sample_B.abs().max() < 1e-6 and gradient.abs().max() < 1e-6


def test_gradient_reaches_only_the_sample_and_the_target_is_held() -> None:
    """With P fixed, d loss / d R is (Q - P) / T over the frames; its way from there to x is autograd's."""
    x, fake, teacher = (each.requires_grad_() for each in clips())
    relation(x, fake_BCFHW=fake, teacher_BCFHW=teacher).per_sample_B.sum().backward()
    assert fake.grad is None and teacher.grad is None
    cosines = frame_cosines(other := x.detach().clone().requires_grad_())
    with torch.no_grad():
        target = (cosines - frame_cosines(fake) + frame_cosines(teacher)).div(0.1).softmax(-1)
        wanted = (cosines.div(0.1).softmax(-1) - target) / 0.1 / SHAPE[2]
    (expected,) = torch.autograd.grad(cosines, other, wanted)
    torch.testing.assert_close(x.grad, expected, rtol=1e-4, atol=1e-6)


def test_frames_that_the_teacher_sees_less_alike_are_moved_apart() -> None:
    x = torch.randn(1, 3, 1, 2, 5).expand(1, 3, 4, 2, 5) + 0.1 * torch.randn(1, 3, 4, 2, 5)
    x, still, moving = x.requires_grad_(), torch.ones(1, 3, 4, 2, 5), torch.randn(1, 3, 4, 2, 5)

    def alike_after_a_step(fake: Tensor, teacher: Tensor) -> float:
        loss = relation(x, fake_BCFHW=fake, teacher_BCFHW=teacher).per_sample_B.sum()
        (gradient,) = torch.autograd.grad(loss, x)
        return frame_cosines(x.detach() - 0.05 * gradient).mean().item()

    before = frame_cosines(x.detach()).mean().item()
    assert alike_after_a_step(still, moving) < before < alike_after_a_step(moving, still)
