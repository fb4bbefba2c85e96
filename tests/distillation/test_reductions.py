"""Methods that are others once a term has no weight, to the byte: named random numbers let nothing else move."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from avd.types import UserError
from helpers.cycles import make_batch, make_cycle, update_random

pytestmark = pytest.mark.usefixtures("one_thread")

PUBLISHED = ("student.optimizer.betas=[0,0.999]", "student.optimizer.clip=null")
"""The optimizer of continuous-time consistency."""
RCM_FAKE_SCORE = (
    "fake_score.updates=4",
    "fake_score.optimizer.betas=[0,0.999]",
    "fake_score.optimizer.clip=null",
    "objective.distribution_matching.shift=2",
)


def trained(recipe: str, *changes: str) -> list[Tensor]:
    """The student after two updates."""
    cycle = make_cycle(*changes, recipe=recipe)
    for update in range(2):
        cycle.run(make_batch(cycle.recipe), update_random(update))
    return [p.detach() for p in cycle.roles.student.network.parameters()]


def equal(found: list[Tensor], expected: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_rcm_without_distribution_matching_is_scm() -> None:
    same = ("objective.continuous_consistency.warmup=2",)
    scm = trained("scm", *same)
    assert equal(trained("rcm", *same, "objective.distribution_matching.weight=0"), scm)
    assert equal(trained("rcm", *same), scm)  # which has not started
    assert not equal(trained("rcm", *same, "objective.distribution_matching.start=1"), scm)


def test_rcm_without_consistency_is_dmd() -> None:
    alone = ("objective.distribution_matching.start=0", "objective.distribution_matching.weight=1")
    without = ("objective.continuous_consistency.weight=0", "rollout.drawn_shift=null")
    dmd = trained("dmd", *PUBLISHED, *RCM_FAKE_SCORE)
    assert equal(trained("rcm", *alone, *without), dmd)
    assert not equal(trained("rcm", *alone, without[0]), dmd)


def test_a_discriminator_that_weighs_nothing_leaves_dmd_as_it_is() -> None:
    """On the same prompts, while its heads learn."""
    weightless = "objective.adversarial.weight=1e-30"
    batch, students = make_batch(make_cycle(weightless, recipe="dmd").recipe), list[list[Tensor]]()
    for changes in ((), (weightless,)):
        cycle = make_cycle(*changes, recipe="dmd")
        heads = [role.network.heads[0][3].weight for role in cycle.roles.heads.values()]
        before = [weight.detach().clone() for weight in heads]
        for update in range(2):
            cycle.run(batch, update_random(update))
        students.append([p.detach() for p in cycle.roles.student.network.parameters()])
    assert equal(*students)
    assert len(heads) == 1 and not torch.equal(heads[0], before[0])


def test_dp_dmd_without_its_anchor_and_with_every_exit_is_dmd() -> None:
    every, without = "rollout.first_exit=0", "objective.anchor.weight=0"
    dmd = trained("dmd")
    assert equal(trained("dp-dmd", every, without), dmd)
    assert not equal(trained("dp-dmd", every), dmd)
    with pytest.raises(UserError, match="no term of its objective trains the student at timestep 1000: set "):
        trained("dp-dmd", without)
