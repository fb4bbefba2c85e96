"""Several latent caches of one model and clip size, as one source of clips: data.caches of a recipe."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import TypeVar

import torch
from torch import Tensor

from avd.data.cache import LatentSource
from avd.types import Conditions

Gathered = TypeVar("Gathered")


class LatentMixture:
    """A `LatentSource` of the clips of several, one source after the other.

    It says nothing of how often each is read: that is the order's (`avd.data.batches.BatchOrder`).
    """

    def __init__(self, sources: Sequence[LatentSource]) -> None:
        assert sources
        self._sources = tuple(sources)
        self._ends = list(accumulate(len(source) for source in sources))

    def __len__(self) -> int:
        return self._ends[-1]

    @property
    def captions(self) -> list[str]:
        return [caption for source in self._sources for caption in source.captions]

    def latents(self, indices: Sequence[int]) -> Tensor:
        parts, back = self._read(indices, lambda source, own: source.latents(own))
        return torch.cat(parts)[back]

    def prompts(self, indices: Sequence[int]) -> Conditions:
        parts, back = self._read(indices, lambda source, own: source.prompts(own))
        return Conditions({name: tensor[back] for name, tensor in Conditions.cat(parts).tensors.items()})

    def _read(
        self, indices: Sequence[int], read: Callable[[LatentSource, list[int]], Gathered]
    ) -> tuple[list[Gathered], list[int]]:
        """What `read` gives of each source that is needed, and the row of each index in these, end to end."""
        by_source: dict[int, list[int]] = {}
        for row, index in enumerate(indices):
            if not 0 <= index < len(self):
                raise IndexError(f"index {index} of {len(self)} clips")
            by_source.setdefault(bisect_right(self._ends, index), []).append(row)
        if not by_source:
            return [read(self._sources[0], [])], []
        parts = []
        for number, rows in by_source.items():
            start = self._ends[number] - len(self._sources[number])
            parts.append(read(self._sources[number], [indices[row] - start for row in rows]))
        order = [row for rows in by_source.values() for row in rows]
        back = [0] * len(order)
        for place, row in enumerate(order):
            back[row] = place
        return parts, back
