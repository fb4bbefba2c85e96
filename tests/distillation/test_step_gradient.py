"""The student's gradient, gathered term by term, is that of the full loss."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from avd.distillation.step import Batch
from avd.engine.randomness import UpdateRandom
from helpers.cycles import BATCH, INTERPOLATOR, Cycle, make_batch, make_cycle, random_for_exit
from helpers.tiny import LATENT_SHAPE


def reference_gradient(cycle: Cycle, batch: Batch, d: UpdateRandom) -> list[Tensor]:
    """Eq. 9 as one sum, backpropagated at once, from the same random numbers."""
    objective, sigmas = cycle.recipe.objective, (1.0, 0.9, 0.757, 0.522)
    half = cycle.recipe.rollout.half_rate_stages
    student, teacher, fake = cycle.roles.student.network, cycle.roles.teacher, cycle.roles.learned["fake_score"].network
    prompt, null = batch.rollout_prompts[0], cycle.step.unconditional.expand(BATCH)

    def column(sigma_B: Tensor) -> Tensor:
        return sigma_B.view(-1, 1, 1, 1, 1)

    exit_stage = d.shared_integer("rollout", 0, "exit", high=4)
    x = d.normal("rollout", 0, "start", shape=LATENT_SHAPE)
    for i in range(exit_stage + 1):
        stride = 2 if i < half else 1
        if i:
            noise = d.normal("rollout", 0, i, shape=LATENT_SHAPE)
            x = (1 - sigmas[i]) * x.detach() + sigmas[i] * noise
        x = x[:, :, ::stride]
        x = x - sigmas[i] * student(x, torch.full((BATCH,), sigmas[i]), prompt, frame_stride=stride)
        if stride == 2:
            x = INTERPOLATOR(x)

    sigma_B = 0.02 + 0.96 * d.uniform("distribution matching", "sigma")
    noisy = (1 - column(sigma_B)) * x + column(sigma_B) * d.normal("distribution matching", "noise", shape=LATENT_SHAPE)
    with torch.no_grad():
        uncond = teacher(noisy, sigma_B, null)
        real_v = uncond + 5.0 * (teacher(noisy, sigma_B, prompt) - uncond)
        real, imitated = (noisy - column(sigma_B) * v for v in (real_v, fake(noisy, sigma_B, prompt)))
        kl_gradient = (imitated - real) / (x - real).abs().mean((1, 2, 3, 4), keepdim=True)
    kl = (kl_gradient * x).mean()  # its gradient is kl_gradient / (number of values)

    temporal = -torch.log(x.var(2, correction=0).mean() + 1e-6)

    stride = 2 if d.shared_integer("regression", "stride", high=4) < half else 1
    choices = [i for i in range(4) if (2 if i < half else 1) == stride]
    index = torch.tensor(choices)[d.integers("regression", "timestep", high=len(choices))]
    x0 = batch.latents_BCFHW[:, :, ::stride]
    eps = d.normal("regression", "noise", shape=x0.shape[1:])
    s = torch.tensor(sigmas)[index]
    v = student((1 - column(s)) * x0 + column(s) * eps, s, batch.prompts, frame_stride=stride)
    losses = (v - (eps - x0)).square().mean((1, 2, 3, 4))
    weights = 1 - torch.sigmoid(3.0 * (losses.detach() - cycle.means.mean_S[index].float()))

    total = kl + objective.regression.weight * (weights * losses).mean() + objective.temporal.weight * temporal
    return list(torch.autograd.grad(total, list(student.parameters())))


@pytest.mark.parametrize("exit_stage", range(4))
@pytest.mark.parametrize("half_rate_stages", [0, 2])
def test_term_by_term_the_gradient_is_that_of_the_full_loss(
    monkeypatch: pytest.MonkeyPatch,
    exit_stage: int,
    half_rate_stages: int,
) -> None:
    # A heavy temporal term, so that its share of the gradient is not lost in the tolerance.
    cycle = make_cycle(f"rollout.half_rate_stages={half_rate_stages}", "objective.temporal.weight=1")
    cycle.means.mean_S, cycle.means.seen_S = torch.tensor([2.0, 1.5, 1.2, 1.0]).double(), torch.ones(4).bool()
    batch = make_batch(cycle.recipe)
    expected = reference_gradient(cycle, batch, random_for_exit(exit_stage))
    found: list[Tensor] = []
    student = cycle.roles.student
    monkeypatch.setattr(student, "step", lambda: found.extend(p.grad for p in student.network.parameters()) or 0.0)
    cycle.update_student(batch, random_for_exit(exit_stage))
    difference = torch.cat([(a - b).flatten() for a, b in zip(found, expected, strict=True)])
    assert difference.norm() <= 1e-6 * torch.cat([b.flatten() for b in expected]).norm()
