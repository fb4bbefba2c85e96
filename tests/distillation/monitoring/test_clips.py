"""Dealing clips to ranks: each is measured once, and all ranks call a network equally often."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from avd.distillation.monitoring.clips import Round, deal_rounds
from avd.engine.ranks import Ranks


def dealt(count: int, batch: int, size: int) -> list[list[Round]]:
    """The rounds of every rank."""
    return [deal_rounds(count, batch, Ranks(rank, size)) for rank in range(size)]


@given(count=st.integers(1, 40), batch=st.integers(1, 5), size=st.integers(1, 9))
def test_every_clip_is_measured_once_and_every_rank_samples_as_much(count: int, batch: int, size: int) -> None:
    ranks = dealt(count, batch, size)
    assert sorted(i for rounds in ranks for turn in rounds for i in turn.own) == list(range(count))
    for turns in zip(*ranks, strict=True):
        (sampled,) = {len(turn.sampled) for turn in turns}
        assert 1 <= sampled <= batch and len({turn.clips for turn in turns}) == 1
        assert all(turn.sampled[: len(turn.own)] == tuple(turn.own) for turn in turns)
    assert sum(len(turn.sampled) for turn in ranks[0]) == -(-count // size)


def test_a_rank_without_a_clip_of_its_own_samples_another_rank_s() -> None:
    assert [rounds[0].own for rounds in dealt(2, 4, 3)] == [range(0, 2, 3), range(1, 2, 3), range(2, 2, 3)]
    assert [rounds[0].sampled for rounds in dealt(2, 4, 3)] == [(0,), (1,), (0,)]
