"""The order in which training sees its data."""

from __future__ import annotations

import numpy as np

from avd.types import UserError


class BatchOrder:
    """Endless batches of indices into a data set of `count` items.

    The data are shuffled again in every epoch, and the epochs joined end to end. Nothing is ever dropped: a batch may
    begin in one epoch and end in the next. Every step takes `batch_size * world_size` consecutive indices of that
    one global order; rank r has the r-th slice of them, `batch_size` long.

    The order depends on `count`, `seed` and the epoch's number only, so a position in it is all there is to save.
    """

    def __init__(self, count: int, batch_size: int, seed: int, *, rank: int = 0, world_size: int = 1) -> None:
        if count < 1 or batch_size < 1 or seed < 0:
            raise UserError(
                f"data order of {count} items, batch size {batch_size}, seed {seed}: "
                "at least 1 item, a batch size of at least 1 and a seed of at least 0 are needed"
            )
        assert 0 <= rank < world_size
        self._count, self._batch_size, self._seed = count, batch_size, seed
        self._rank, self._world_size = rank, world_size
        self._position = 0
        self._epoch = -1
        self._permutation = np.empty(0, dtype=np.int64)

    def next(self) -> list[int]:
        """The next batch of this rank: `batch_size` indices in [0, count)."""
        start = self._position + self._rank * self._batch_size
        self._position += self._batch_size * self._world_size
        return [self._item(place) for place in range(start, start + self._batch_size)]

    def state_dict(self) -> dict[str, int]:
        """Where the ranks together stand: `position`, the number of indices handed out since the start."""
        return {"position": self._position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go to a saved position; the number of ranks may have changed since."""
        self._position = int(state["position"])

    def _item(self, place: int) -> int:
        epoch, offset = divmod(place, self._count)
        if epoch != self._epoch:
            self._epoch, self._permutation = epoch, _shuffled(self._count, self._seed, epoch)
        return int(self._permutation[offset])


def _shuffled(count: int, seed: int, epoch: int) -> np.ndarray:
    # NumPy promises that raw bits stay the same in all versions, and does not promise it of `Generator.permutation`.
    bits = np.random.Philox(np.random.SeedSequence([seed, epoch])).random_raw(count)
    return np.argsort(bits, kind="stable")
