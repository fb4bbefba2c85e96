"""Batches read ahead: what is read, when, by which thread, and where a saved run resumes."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from avd.config import load_recipe
from avd.data import BatchOrder, MemoryLatents
from avd.distillation.data import RunData
from avd.distillation.reading import BatchReader
from avd.distillation.step import Batch
from avd.engine.randomness import derive_seed
from avd.engine.ranks import SINGLE_PROCESS
from avd.methods.method import Method
from avd.types import Conditions, UserError
from helpers.tiny import tiny_model, tiny_source

MODEL = tiny_model()
SOURCE = tiny_source(MODEL, count=5)
ONE_TERM = ("objective.regression.weight=0", "objective.temporal.weight=0")
"""One term of `avd` is left, and it judges rollouts."""


class Counting(MemoryLatents):
    """Notes each read, its thread, and fails at clip `bad`."""

    def __init__(self, bad: int | None = None) -> None:
        super().__init__(SOURCE._latents, SOURCE._prompts, SOURCE.captions)
        self.bad, self.clips, self.listed = bad, list[list[int]](), list[list[int]]()
        self.threads: set[str] = set()

    def latents(self, indices: Sequence[int]) -> Tensor:
        self.threads.add(threading.current_thread().name)
        self.clips.append(list(indices))
        if self.bad in indices:
            raise UserError("cannot read the shard")
        return super().latents(indices)

    def prompts(self, indices: Sequence[int]) -> Conditions:
        self.threads.add(threading.current_thread().name)
        self.listed.append(list(indices))
        return super().prompts(indices)


def reader_of(source: MemoryLatents, *overrides: str, samples: int = 2, paired: bool = False) -> BatchReader:
    method = Method.of(load_recipe("avd", overrides))
    if paired:
        first, *others = method.terms
        first = replace(first, term=replace(first.term, paired=lambda section: True))
        method = replace(method, terms=(first, *others))
    data = replace(RunData.encode(MODEL, SOURCE), clips=source, prompts=source)
    return BatchReader(data, method, samples, 7, SINGLE_PROCESS)


def settle(reader: BatchReader) -> None:
    """Wait for what is read ahead."""
    if reader._ahead is not None:
        reader._ahead.reading.exception()


def same(a: Batch, b: Batch) -> bool:
    assert a.latents_BCFHW is not None and b.latents_BCFHW is not None
    pairs = zip(a.rollout_prompts, b.rollout_prompts, strict=True)
    prompts = all(torch.equal(x["embedding"], y["embedding"]) for x, y in pairs)
    return torch.equal(a.latents_BCFHW, b.latents_BCFHW) and prompts


def test_one_batch_is_read_ahead_by_another_thread_and_none_twice() -> None:
    source = Counting()
    reader = reader_of(source)
    assert not source.clips
    for count in range(1, 6):
        reader.next()
        settle(reader)
        assert len(source.clips) == count + 1 and len(source.listed) == 2 * (count + 1)
    order = BatchOrder(5, 2, derive_seed(7, "video order"))
    assert source.clips == [order.next() for _ in range(6)]
    assert source.threads == {"batches_0"}


def test_a_saved_position_counts_what_was_handed_out() -> None:
    reader = reader_of(Counting())
    assert reader.state_dict() == {"video_order": {"position": 0}, "prompt_order": {"position": 0}}
    for count in range(1, 5):
        reader.next()
        settle(reader)
        assert reader.state_dict() == {"video_order": {"position": 2 * count}, "prompt_order": {"position": 2 * count}}


def test_a_reader_that_resumes_or_goes_back_gives_the_same_batches() -> None:
    reader, states, batches = reader_of(Counting()), [], []
    for _ in range(6):
        states.append(reader.state_dict())
        batches.append(reader.next())
    for n in (3, 0, 5):
        for other in (reader, reader_of(Counting())):
            other.load_state_dict(states[n])
            assert other.state_dict() == states[n]
            assert all(same(other.next(), batch) for batch in batches[n:])


def test_what_cannot_be_read_is_reported_by_the_batch_that_needs_it() -> None:
    order = BatchOrder(5, 1, derive_seed(7, "video order"))
    bad = [order.next()[0] for _ in range(3)][2]
    reader = reader_of(Counting(bad), samples=1)
    reader.next()
    settle(reader)
    reader.next()
    settle(reader)
    saved = reader.state_dict()
    with pytest.raises(UserError, match="cannot read the shard"):
        reader.next()
    assert reader.state_dict() == saved


def test_clips_are_read_only_where_a_term_learns_from_them() -> None:
    source = Counting()
    batch = reader_of(source, *ONE_TERM).next()
    assert batch.latents_BCFHW is None and batch.prompts is None and not source.clips
    assert len(batch.rollout_prompts) == 1 and batch.latent_CFHW == tuple(SOURCE.latents([0]).shape[1:])


@pytest.mark.parametrize("rollouts", [1, 3])
def test_paired_rollouts_are_on_the_captions_of_the_clips_that_come_with_them(rollouts: int) -> None:
    source, order = Counting(), BatchOrder(5, 2, derive_seed(7, "video order"))
    fresh = ("rollout.shared=false", f"fake_score.updates={rollouts}") if rollouts > 1 else ()
    reader = reader_of(source, *ONE_TERM, *fresh, paired=True)
    for count in (1, 2):
        batch, rows = reader.next(), [order.next() for _ in range(rollouts)]
        assert reader.state_dict()["video_order"] == {"position": 2 * rollouts * count}
        assert len(batch.rollout_prompts) == len(batch.rollout_latents) == rollouts
        for prompts, latents, which in zip(batch.rollout_prompts, batch.rollout_latents, rows, strict=True):
            assert torch.equal(latents, SOURCE.latents(which))
            assert torch.equal(prompts["embedding"], SOURCE.prompts(which)["embedding"])
        assert batch.latents_BCFHW is batch.rollout_latents[0] and batch.prompts is batch.rollout_prompts[0]
    settle(reader)
    assert source.clips == source.listed  # no prompt is read but a clip's
