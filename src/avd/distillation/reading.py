"""Batches of a run, each read while the one before it is trained on.

Which clips and prompts a batch holds is decided in order, by the thread that trains; another thread only reads them. So
order and numbers are those of reading without one, and a position that is saved counts batches that were handed out,
not those that were read ahead: a run killed anywhere resumes with the batch that it would have seen.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from avd.data import BatchOrder, Portion
from avd.distillation.data import RunData
from avd.distillation.step import Batch
from avd.engine.randomness import derive_seed
from avd.engine.ranks import Ranks
from avd.methods.method import Method
from avd.objectives.source import DataSource
from avd.types import Conditions


@dataclass(frozen=True)
class _Read:
    """A batch on the CPU."""

    latents_BCFHW: Tensor | None
    captions: Conditions | None
    rollout_prompts: tuple[Conditions, ...]


@dataclass(frozen=True)
class _Ahead:
    """A batch that is being read, and the orders' positions once it has been handed out."""

    reading: Future[_Read]
    state: dict[str, Any]


class BatchReader:
    """This rank's batches of `samples` clips, endless, in the order that the run's `seed` gives.

    Real clips and the prompts of rollouts come from `data`, each in an order of their own. Real clips are read only
    where a term of the method learns from them.
    """

    def __init__(self, data: RunData, method: Method, samples: int, seed: int, ranks: Ranks) -> None:
        self._data, self._rollouts, self._device = data, method.rollouts, ranks.device
        self._reads_clips = any(isinstance(source, DataSource) for source in method.sources)

        def order(what: str, count: int, parts: tuple[Portion, ...]) -> BatchOrder:
            own = derive_seed(seed, what)
            return BatchOrder(count, samples, own, rank=ranks.data_rank, world_size=ranks.data_size, parts=parts)

        self._orders = {"prompt_order": order("prompt order", len(data.prompts), data.prompt_parts)}
        if data.clips is not None:
            self._orders["video_order"] = order("video order", len(data.clips), data.parts)
        self._thread = ThreadPoolExecutor(1, "batches")
        self._ahead: _Ahead | None = None
        self._state = self._positions()

    def next(self) -> Batch:
        """The next batch, on the run's device. Raises UserError if a file of it cannot be read."""
        ahead, self._ahead = self._ahead or self._begin(), None
        read = ahead.reading.result()
        self._state, self._ahead = ahead.state, self._begin()
        latents, captions = read.latents_BCFHW, read.captions
        return Batch(
            None if latents is None else latents.to(self._device, non_blocking=True),
            None if captions is None else captions.upload(self._device),
            tuple(each.upload(self._device) for each in read.rollout_prompts),
            self._data.latent_CFHW,
        )

    def state_dict(self) -> dict[str, Any]:
        """Positions after the last batch that was handed out; None for the real clips of a run without any."""
        return self._state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to saved positions; what was read ahead is dropped."""
        if self._ahead is not None:
            self._ahead.reading.cancel()
        self._ahead = None
        for name, order in self._orders.items():
            order.load_state_dict(state[name])
        self._state = self._positions()

    def _positions(self) -> dict[str, Any]:
        return {"video_order": None} | {name: order.state_dict() for name, order in self._orders.items()}

    def _begin(self) -> _Ahead:
        """Decide what the batch after the last one holds, and have it read."""
        clips = self._orders["video_order"].next() if "video_order" in self._orders else []
        prompts = [self._orders["prompt_order"].next() for _ in range(self._rollouts)]
        return _Ahead(self._thread.submit(self._read, clips, prompts), self._positions())

    def _read(self, clips: list[int], prompts: list[list[int]]) -> _Read:
        """In pinned memory where a GPU is to copy from it."""
        latents: Tensor | None = None
        captions: Conditions | None = None
        if self._reads_clips:
            assert self._data.clips is not None, "see `distillation.preflight`"
            latents, captions = self._data.clips.latents(clips), self._data.clips.prompts(clips)
        rollouts = tuple(self._data.prompts.prompts(indices) for indices in prompts)
        if self._device.type != "cuda":
            return _Read(latents, captions, rollouts)
        return _Read(
            None if latents is None else latents.pin_memory(),
            None if captions is None else captions.pin_memory(),
            tuple(each.pin_memory() for each in rollouts),
        )
