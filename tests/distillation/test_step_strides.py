"""A training step whose first stages run on part of the latents."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from avd.sampling.rollout import Rollout
from helpers.cycles import BATCH, make_batch, make_cycle, random_for_exit
from helpers.tiny import LATENT_SHAPE, tiny_interpolator


@pytest.mark.parametrize("exit_stage", [0, 1, 2])
def test_half_resolution_stages_see_every_second_row_and_column(exit_stage: int) -> None:
    """In the rollout and in the regression alike; what the scores judge is full, whatever stage it left at."""
    cycle = make_cycle("rollout.half_rate_stages=2", "rollout.half_resolution_stages=1", "fake_score.updates=1")
    cycle.rollout = Rollout(cycle.rollout.stages, tiny_interpolator(space=True).requires_grad_(False))
    channels, frames = LATENT_SHAPE[:2]
    shapes, calls = (channels, frames, 4, 4), []

    def record(module: nn.Module, args: tuple[Tensor, ...], options: dict[str, Any], output: Tensor) -> None:
        calls.append((tuple(args[0].shape[2:]), options["frame_stride"], options["space_stride"]))

    batch = replace(
        make_batch(cycle.recipe),
        latents_BCFHW=torch.randn(BATCH, *shapes, generator=torch.Generator().manual_seed(0)),
        latent_CFHW=shapes,
    )
    expected = [((3, 2, 2), 2, 2), ((3, 4, 4), 2, 1), ((5, 4, 4), 1, 1), ((5, 4, 4), 1, 1)]
    handle = cycle.roles.student.network.register_forward_hook(record, with_kwargs=True)
    fake: list[tuple[int, ...]] = []
    fakes = cycle.roles.auxiliary(
        "fake_score"
    ).register_forward_hook(  # type: ignore[attr-defined]
        lambda module, args, output: fake.append(tuple(args[0].shape[1:]))
    )
    cycle.run(batch, random_for_exit(exit_stage))
    handle.remove()
    fakes.remove()
    assert calls[: exit_stage + 1] == expected[: exit_stage + 1]
    assert calls[exit_stage + 1] in expected and len(calls) == exit_stage + 2  # of the regression
    assert set(fake) == {shapes}
