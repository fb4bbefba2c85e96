"""Random numbers depend on what they are for and on nothing else."""

from __future__ import annotations

import itertools

import torch

from avd.engine.randomness import derive_seed, generator_for


def test_a_seed_is_the_same_on_every_machine_and_in_every_run() -> None:
    """Frozen: a change would give every run that is resumed another future."""
    assert derive_seed(0, "rollout", 7) == 5703918832696801055


def test_seeds_are_distinct_and_fit_63_bits() -> None:
    parts = itertools.product(range(5), ("rollout", "regression", "data"), range(200))
    seeds = [derive_seed(*p) for p in parts]
    assert len(set(seeds)) == len(seeds) == 3000
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_neighbouring_parts_do_not_run_together() -> None:
    assert len({derive_seed(1, 23), derive_seed(12, 3), derive_seed(123), derive_seed(3, 12)}) == 4


def test_generators_repeat_and_do_not_touch_the_global_one() -> None:
    state = torch.get_rng_state()
    first, second = (torch.randn(5, generator=generator_for(0, "noise", 3)) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, torch.randn(5, generator=generator_for(0, "noise", 4)))
    assert torch.equal(torch.get_rng_state(), state)
