"""The order of the data: full epochs, disjoint ranks, exact resumption."""

from __future__ import annotations

import json
from itertools import chain

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avd.data import BatchOrder, Portion, places_of
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


def test_parts_keep_their_shares_and_their_own_epochs() -> None:
    parts = (Portion(3, 3.0), Portion(20, 1.0))
    order = BatchOrder(23, 100, seed=4, parts=parts)
    found = [index for _ in range(20) for index in order.next()]
    for block in (found[:1000], found[1000:]):
        assert sum(index < 3 for index in block) == 750
    first, second = [i for i in found if i < 3], [i for i in found if i >= 3]
    assert all(sorted(first[i : i + 3]) == [0, 1, 2] for i in range(0, 1500, 3))
    assert all(sorted(second[i : i + 20]) == list(range(3, 23)) for i in range(0, 500, 20))
    assert found[:1000] != found[1000:] and len({i < 3 for i in found[:20]}) == 2  # mixed, not one after the other


def test_a_mixture_does_not_depend_on_ranks_and_resumes() -> None:
    parts = (Portion(5, 0.3), Portion(4, 0.7))
    one = BatchOrder(9, 6, seed=1, parts=parts)
    expected = [one.next() for _ in range(400)]
    ranks = [BatchOrder(9, 2, seed=1, rank=rank, world_size=3, parts=parts) for rank in range(3)]
    assert [[index for rank in ranks for index in rank.next()] for _ in range(400)] == expected
    resumed = BatchOrder(9, 3, seed=1, rank=1, world_size=2, parts=parts)
    resumed.load_state_dict({"position": 6 * 399})
    assert resumed.next() == expected[399][3:]


@pytest.mark.parametrize(
    ("weights", "places"), [((1, 1, 1), [334, 333, 333]), ((2, 1), [667, 333]), ((5000, 1), [1000, 0]), ((1,), [1000])]
)
def test_places_add_up(weights: tuple[float, ...], places: list[int]) -> None:
    assert places_of([Portion(1, weight) for weight in weights]) == places
