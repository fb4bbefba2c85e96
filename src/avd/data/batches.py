"""The order in which training sees its data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from avd.types import UserError

_BLOCK = 1000
"""Places within which the parts of a mixture keep their shares."""


@dataclass(frozen=True)
class Portion:
    """Consecutive items of a data set that are drawn by a weight of their own, in proportion to the other parts'."""

    count: int
    weight: float


class _Order(Protocol):
    """Which item stands at each place of an endless order."""

    def item(self, place: int) -> int: ...


class BatchOrder:
    """Endless batches of indices into a data set of `count` items.

    The data are shuffled again in every epoch, and the epochs joined end to end. Nothing is ever dropped: a batch may
    begin in one epoch and end in the next. Every step takes `batch_size * world_size` consecutive indices of that
    one global order; rank r has the r-th slice of them, `batch_size` long.

    With `parts`, which make up the data set, every part has its own epochs, and of each 1,000 places so many as its
    share of the weights is, rounded.

    The order depends on `count`, `parts`, `seed` and the epoch's number only, so a position in it is all there is to
    save.
    """

    def __init__(
        self,
        count: int,
        batch_size: int,
        seed: int,
        *,
        rank: int = 0,
        world_size: int = 1,
        parts: Sequence[Portion] = (),
    ) -> None:
        if count < 1 or batch_size < 1 or seed < 0:
            raise UserError(
                f"data order of {count} items, batch size {batch_size}, seed {seed}: "
                "at least 1 item, a batch size of at least 1 and a seed of at least 0 are needed"
            )
        assert 0 <= rank < world_size and (not parts or sum(part.count for part in parts) == count)
        self._order: _Order = _Mixed(parts, seed) if parts else _Shuffled(count, seed)
        self._batch_size, self._rank, self._world_size = batch_size, rank, world_size
        self._position = 0

    def next(self) -> list[int]:
        """The next batch of this rank: `batch_size` indices in [0, count)."""
        start = self._position + self._rank * self._batch_size
        self._position += self._batch_size * self._world_size
        return [self._order.item(place) for place in range(start, start + self._batch_size)]

    def state_dict(self) -> dict[str, int]:
        """Where the ranks together stand: `position`, the number of indices handed out since the start."""
        return {"position": self._position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go to a saved position; the number of ranks may have changed since."""
        self._position = int(state["position"])


def places_of(parts: Sequence[Portion]) -> list[int]:
    """How many of 1,000 places each part has: its share, rounded so that they add up, the largest remainders first."""
    total = sum(part.weight for part in parts)
    exact = [_BLOCK * part.weight / total for part in parts]
    places = [int(share) for share in exact]
    by_remainder = sorted(range(len(parts)), key=lambda i: (places[i] - exact[i], i))
    for i in by_remainder[: _BLOCK - sum(places)]:
        places[i] += 1
    return places


class _Shuffled:
    """All items in every epoch, shuffled again."""

    def __init__(self, count: int, seed: int) -> None:
        self._count, self._seed = count, seed
        self._epoch = -1
        self._permutation = np.empty(0, dtype=np.int64)

    def item(self, place: int) -> int:
        epoch, offset = divmod(place, self._count)
        if epoch != self._epoch:
            self._epoch, self._permutation = epoch, _shuffled(self._count, self._seed, epoch)
        return int(self._permutation[offset])


class _Mixed:
    """Parts, one after the other, each shuffled by itself; which part a place belongs to is shuffled block by block."""

    def __init__(self, parts: Sequence[Portion], seed: int) -> None:
        self._places = places_of(parts)
        self._starts = np.cumsum([0, *(part.count for part in parts)])
        self._orders = [_Shuffled(part.count, _seed_of(seed, number)) for number, part in enumerate(parts)]
        self._seed = _seed_of(seed, len(parts))
        self._block = -1
        self._part, self._within = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)

    def item(self, place: int) -> int:
        block, offset = divmod(place, _BLOCK)
        if block != self._block:
            self._block = block
            self._part = np.repeat(np.arange(len(self._places)), self._places)[_shuffled(_BLOCK, self._seed, block)]
            self._within = np.empty_like(self._part)
            for part, count in enumerate(self._places):
                self._within[self._part == part] = np.arange(count)
        part = int(self._part[offset])
        return int(self._starts[part]) + self._orders[part].item(block * self._places[part] + int(self._within[offset]))


def _shuffled(count: int, seed: int, epoch: int) -> np.ndarray:
    # NumPy promises that raw bits stay the same in all versions, and does not promise it of `Generator.permutation`.
    bits = np.random.Philox(np.random.SeedSequence([seed, epoch])).random_raw(count)
    return np.argsort(bits, kind="stable")


def _seed_of(seed: int, part: int) -> int:
    """A seed of a part's own."""
    return int(np.random.SeedSequence([seed, part]).generate_state(2, np.uint64)[0] >> np.uint64(1))
