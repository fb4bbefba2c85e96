"""The order of the data: full epochs, disjoint ranks, exact resumption."""

from __future__ import annotations

import json
from itertools import chain

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avd.data import BatchOrder
from avd.types import UserError

COUNT = st.integers(1, 30)
BATCH = st.integers(1, 12)
SEED = st.integers(0, 2**40)


@given(COUNT, BATCH, SEED)
@settings(max_examples=60, deadline=None)
def test_every_epoch_is_a_permutation(count: int, batch_size: int, seed: int) -> None:
    order = BatchOrder(count, batch_size, seed)
    batches = [order.next() for _ in range(-(-3 * count // batch_size))]
    assert all(len(batch) == batch_size for batch in batches)
    joined = list(chain.from_iterable(batches))
    for epoch in range(3):
        assert sorted(joined[epoch * count : (epoch + 1) * count]) == list(range(count))


@given(COUNT, BATCH, SEED, st.integers(0, 20))
@settings(max_examples=60, deadline=None)
def test_a_resumed_order_equals_one_never_stopped(count: int, batch_size: int, seed: int, stop: int) -> None:
    uninterrupted = BatchOrder(count, batch_size, seed)
    expected = [uninterrupted.next() for _ in range(stop + 10)]
    first = BatchOrder(count, batch_size, seed)
    assert [first.next() for _ in range(stop)] == expected[:stop]
    state = json.loads(json.dumps(first.state_dict()))
    second = BatchOrder(count, batch_size, seed)
    second.load_state_dict(state)
    assert [second.next() for _ in range(10)] == expected[stop:]


@given(COUNT, BATCH, SEED, st.integers(1, 5))
@settings(max_examples=60, deadline=None)
def test_ranks_share_one_global_order(count: int, batch_size: int, seed: int, world_size: int) -> None:
    one = BatchOrder(count, batch_size * world_size, seed)
    ranks = [BatchOrder(count, batch_size, seed, rank=rank, world_size=world_size) for rank in range(world_size)]
    for _ in range(6):
        assert list(chain.from_iterable(rank.next() for rank in ranks)) == one.next()
        assert all(rank.state_dict() == one.state_dict() for rank in ranks)


def test_epochs_and_seeds_differ() -> None:
    order, other = BatchOrder(50, 50, seed=0), BatchOrder(50, 50, seed=1)
    first, second = order.next(), order.next()
    assert first != second
    assert first != other.next()


def test_the_order_is_the_same_everywhere() -> None:
    assert BatchOrder(8, 8, seed=0).next() == [0, 3, 7, 5, 1, 2, 6, 4]


@pytest.mark.parametrize("arguments", [(0, 1, 0), (1, 0, 0), (1, 1, -1)])
def test_impossible_orders_are_refused(arguments: tuple[int, int, int]) -> None:
    with pytest.raises(UserError):
        BatchOrder(*arguments)
