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
from avd.types import Conditions


@dataclass(frozen=True)
class _Read:
    """A batch on the CPU."""

    latents: tuple[Tensor, ...]
    """Real clips of the batch, and with paired rollouts of each further one; empty where none are read."""
    captions: tuple[Conditions, ...]
    rollout_prompts: tuple[Conditions, ...]


@dataclass(frozen=True)
class _Ahead:
    """A batch that is being read, and the orders' positions once it has been handed out."""

    reading: Future[_Read]
    state: dict[str, Any]


class BatchReader:
    """This rank's batches of `samples` clips, endless, in the order that the run's `seed` gives.

    Real clips and the prompts of rollouts come from `data`, each in an order of their own. Real clips are read only
    where a term of the method learns from them. Where the method pairs rollouts with real clips, the captions of these
    are the prompts, a batch of clips for each rollout.
    """

    def __init__(self, data: RunData, method: Method, samples: int, seed: int, ranks: Ranks) -> None:
        self._data, self._rollouts, self._device = data, method.rollouts, ranks.device
        self._reads_clips, self._paired = method.learns_from_clips, method.paired

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
        latents = tuple(each.to(self._device, non_blocking=True) for each in read.latents)
        captions = tuple(each.upload(self._device) for each in read.captions)
        return Batch(
            latents[0] if latents else None,
            captions[0] if captions else None,
            captions if self._paired else tuple(each.upload(self._device) for each in read.rollout_prompts),
            self._data.latent_CFHW,
            latents if self._paired else (),
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
        batches = self._rollouts if self._paired else int("video_order" in self._orders)
        clips = [self._orders["video_order"].next() for _ in range(batches)]
        prompts = [] if self._paired else [self._orders["prompt_order"].next() for _ in range(self._rollouts)]
        return _Ahead(self._thread.submit(self._read, clips, prompts), self._positions())

    def _read(self, clips: list[list[int]], prompts: list[list[int]]) -> _Read:
        """In pinned memory where a GPU is to copy from it."""
        latents: tuple[Tensor, ...] = ()
        captions: tuple[Conditions, ...] = ()
        if self._reads_clips:
            source = self._data.clips
            assert source is not None, "see `distillation.preflight`"
            latents = tuple(source.latents(indices) for indices in clips)
            captions = tuple(source.prompts(indices) for indices in clips)
        rollouts = tuple(self._data.prompts.prompts(indices) for indices in prompts)
        if self._device.type != "cuda":
            return _Read(latents, captions, rollouts)
        return _Read(
            tuple(each.pin_memory() for each in latents),
            tuple(each.pin_memory() for each in captions),
            tuple(each.pin_memory() for each in rollouts),
        )
