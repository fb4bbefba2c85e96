"""Adversarial matching: heads tell the student's clips from real ones of their prompts, and the student deceives them.

DMD2 (arXiv 2405.14867, Sec. 4.3) adds it to distribution matching, so that the student also learns from data what the
teacher does not know. A sample x of the student and a real latent y of its prompt are noised to one level, each with
noise of its own, and D gives a logit for each:

    x_s = (1 - s) x + s eps        y_s = (1 - s) y + s eps'
    L_G = softplus(-D(x_s))
    L_D = softplus(D(x_s)) + softplus(-D(y_s)) + r1 (D(y_s) - D(y_s + a xi))^2

At the optimum D = log p_real - log p_student at the level s, so that dL_G / dx_s = -sigmoid(-D) (score_real -
score_student). "hinge" has L_G = -D(x_s) and L_D = relu(1 + D(x_s)) + relu(1 - D(y_s)) instead, as PCM has it (arXiv
2405.18407, Eq. 12).

The last term is R1, the squared slope of D at real data, by a difference along a random direction (Seaweed-APT, arXiv
2501.08316, Eq. 6): of a linear D = w x it is (a w xi)^2, a^2 |w|^2 on average. It needs no second derivative.

D is a set of heads on what blocks of the frozen teacher make of the noisy clip, without guidance: the teacher knows the
prompt and the level, and the heads' updates leave everything else alone. The losses are means over heads. The student's
gradient passes through the teacher to its input, and computes no gradient of a weight on the way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from avd.flow import add_noise
from avd.objectives.term import through_input
from avd.types import LossTerm

Form = Literal["softplus", "hinge"]
Discriminate = Callable[[Tensor, Tensor], Tensor]
"""Logits (B, heads) of (x_BCFHW, sigma_B), with prompts already bound."""


def generator_loss(
    x_BCFHW: Tensor, *, discriminate: Discriminate, sigma_B: Tensor, eps_BCFHW: Tensor, form: Form = "softplus"
) -> LossTerm:
    """L_G of samples `x_BCFHW`, noised with `eps_BCFHW` to `sigma_B` in [0, 1); gradient reaches only them.

    `discriminate` is called once, with a gradient.
    """
    with torch.enable_grad():
        x = x_BCFHW.detach().float().requires_grad_()
        logits = discriminate(add_noise(x, eps_BCFHW, sigma_B), sigma_B)
        loss_B = (functional.softplus(-logits) if form == "softplus" else -logits).mean(1)
    return LossTerm("adversarial", through_input(x_BCFHW, x, loss_B))


def discriminator_loss(
    x_BCFHW: Tensor,
    real_BCFHW: Tensor,
    *,
    discriminate: Discriminate,
    sigma_B: Tensor,
    noise: Callable[[str], Tensor],
    form: Form = "softplus",
    r1: float = 0.0,
    r1_step: float = 0.1,
) -> LossTerm:
    """L_D of samples `x_BCFHW` and of real latents of the same prompts, both noised to `sigma_B`.

    `noise` gives standard normal numbers of the shape of a batch, by name. `discriminate` is called on the samples, on
    the real latents and, unless `r1` is 0, on these moved by `r1_step`. `discriminator_accuracy` is the share of the
    clips that it tells right, over heads; the undecided count half.
    """
    real = add_noise(real_BCFHW, noise("real"), sigma_B)
    on_fake = discriminate(add_noise(x_BCFHW.detach().float(), noise("fake"), sigma_B), sigma_B)
    on_real = discriminate(real, sigma_B)
    if form == "softplus":
        loss_B = (functional.softplus(on_fake) + functional.softplus(-on_real)).mean(1)
    else:
        loss_B = (functional.relu(1 + on_fake) + functional.relu(1 - on_real)).mean(1)
    right = 0.5 + (on_real.sign().double().mean() - on_fake.sign().double().mean()) / 4
    metrics = {"discriminator_accuracy": right.item()}
    if r1:
        square_B = (on_real - discriminate(real + r1_step * noise("r1"), sigma_B)).square().mean(1)
        loss_B = loss_B + r1 * square_B
        metrics["discriminator_r1"] = square_B.mean().item()
    return LossTerm("discriminator", loss_B, metrics)
