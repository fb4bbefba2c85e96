"""A cache written by several processes: the bytes that one writes, whoever is killed, and never two in a part."""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable, Sequence
from multiprocessing import Pipe
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from avd.data import CacheWriter, LatentCache, Share, prepare, read_skipped, write_video
from avd.data.plan import plan
from avd.files import FolderInUse, FolderLock
from avd.types import UserError
from helpers import kill_preparation
from helpers.command import snapshot
from helpers.kill_preparation import Pooling
from helpers.killing import before, in_a_fork

PART = 2
"""Files of a part; nine files make five parts."""


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of one to three windows, some of one caption, two bad ones next to each other, which fill a part."""
    folder = tmp_path_factory.mktemp("videos")
    for index, frames in enumerate([5, 16, 0, 0, 30, 12, 20, 9, 6]):
        level = np.arange(max(frames, 3), dtype=np.uint8)[:, None, None, None] * 4 + 20 * index
        write_video(folder / f"{index}.mp4", np.broadcast_to(level, (len(level), 32, 32, 3)), 8)
        (folder / f"{index}.txt").write_text(f"{index % 4} caption")
    return folder


@pytest.fixture(scope="module")
def alone(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    cache = tmp_path_factory.mktemp("alone") / "cache"
    assert kill_preparation.run(videos, cache, part_size=PART) is not None
    return cache


def shares(count: int) -> list[Share]:
    """Those of processes that torchrun starts: the first waits for all."""
    return [Share(index, count, range(count if index == 0 else 0)) for index in range(count)]


def work(videos: Path, cache: Path, share: Share) -> Callable[[], int]:
    def do() -> int:
        torch.set_num_threads(1)
        return 0 if kill_preparation.run(videos, cache, part_size=PART, share=share) else 3

    return do


def at_once(jobs: Sequence[Callable[[], int]]) -> list[int]:
    """How processes ended that ran at the same time."""
    children = []
    for job in jobs:
        child = os.fork()
        if child == 0:
            os._exit(in_a_fork(job) % 256)
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def test_parts_hold_what_one_reads(alone: Path, videos: Path) -> None:
    cache = LatentCache(alone)
    cache.verify()
    names = [each.source.name for each in plan(videos, None, None, None)]  # type: ignore[union-attr]
    order = [names.index(item.file) for item in cache.items]
    assert order == sorted(order) == [0, 1, 1, 1, 4, 4, 4, 5, 5, 6, 6, 6, 7, 8]
    assert [skip.file for skip in read_skipped(alone)] == ["2.mp4", "3.mp4"]
    assert not list((alone / "part-00001").glob("*.safetensors")), "a part of which nothing can be used"
    for index in range(len(cache)):
        expected = Pooling().encode_prompts([cache.captions[index]])["embedding"]
        assert torch.equal(cache.prompts([index])["embedding"], expected)


@pytest.mark.parametrize("size", [1, 3, 64])
def test_the_size_of_parts_changes_no_order(size: int, videos: Path, alone: Path, tmp_path: Path) -> None:
    kill_preparation.run(videos, tmp_path / "cache", part_size=size)
    found, expected = LatentCache(tmp_path / "cache"), LatentCache(alone)
    assert found.items == expected.items and read_skipped(tmp_path / "cache") == read_skipped(alone)


@pytest.mark.parametrize("count", [2, 4, 7])
def test_any_number_of_processes_writes_the_same_bytes(count: int, videos: Path, alone: Path, tmp_path: Path) -> None:
    ends = at_once([work(videos, tmp_path / "cache", share) for share in shares(count)])
    assert ends == [0] + [3] * (count - 1)  # the first completes it, the others have nothing to say of it
    assert snapshot(tmp_path / "cache") == snapshot(alone)


def test_shares_of_a_job_array_need_not_meet(videos: Path, alone: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    for index in (2, 0):
        share = Share(index, 3, range(index, index + 1))
        assert kill_preparation.run(videos, cache, part_size=PART, share=share) is None
        with pytest.raises(UserError, match="unfinished"):
            LatentCache(cache)
    assert kill_preparation.run(videos, cache, part_size=PART, share=Share(1, 3, range(1, 2))) is not None
    assert snapshot(cache) == snapshot(alone)


@pytest.mark.parametrize("moment", ["between windows", "half a shard", "end", "texts"])
def test_one_of_two_is_killed_and_both_run_again(moment: str, videos: Path, alone: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first, second = Share(0, 2, range(0)), Share(1, 2, range(2))

    def killed() -> int:
        kill_preparation.MOMENTS[moment]()
        return work(videos, cache, first)()

    assert at_once([killed, work(videos, cache, Share(1, 2, range(0)))])[1] == 3
    with pytest.raises(UserError, match="unfinished"):
        LatentCache(cache)
    assert at_once([work(videos, cache, first), work(videos, cache, second)]) == [3, 0]
    assert snapshot(cache) == snapshot(alone)


@pytest.mark.parametrize("why", ["full disk", "in use"])
def test_who_waits_for_a_process_that_fails_ends_too(
    why: str,
    videos: Path,
    alone: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """By a note, which the same process takes back when it starts again."""
    cache, held = tmp_path / "cache", tmp_path / "cache" / "part-00003"
    held.mkdir(parents=True)
    lock = FolderLock(held, "a part")

    def full(self: Pooling, frames: np.ndarray) -> Tensor:
        raise OSError(errno.ENOSPC, "No space left on device")

    def failing() -> int:
        if why == "full disk":
            Pooling.encode_video = full  # type: ignore[method-assign]
        return work(videos, cache, Share(1, 2, range(0)))()

    def waiting() -> int:
        signal.alarm(60)  # instead of for ever
        try:
            return work(videos, cache, Share(0, 2, range(2)))()
        except UserError as error:
            print(error)
            return 2

    if why == "in use":
        lock.acquire()
    with monkeypatch.context() as patch:
        patch.setattr("avd.data.parts._START", 0.0)  # there is no earlier try
        assert at_once([waiting, failing]) == [2, 70]
    assert capfd.readouterr().out == (
        f"process 1 of the 2, from 0, that write the latent cache {cache} has failed: its last lines say why; put "
        "it right and run the same command again\n"
    )
    lock.release()
    assert at_once([waiting, work(videos, cache, Share(1, 2, range(0)))]) == [0, 3]
    assert snapshot(cache) == snapshot(alone)


def test_a_note_of_an_earlier_try_counts_if_nobody_takes_it_back(
    videos: Path, alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    assert kill_preparation.run(videos, cache, part_size=PART, share=Share(0, 3, range(0))) is None
    (cache / "failed-00001").touch()
    monkeypatch.setattr("avd.data.parts._START", 0.0)
    with pytest.raises(UserError, match="process 1 of the 3, from 0"):
        kill_preparation.run(videos, cache, part_size=PART, share=Share(0, 3, range(3)))
    assert kill_preparation.run(videos, cache, part_size=PART) is not None  # alone it waits for nobody
    assert snapshot(cache) == snapshot(alone)


@pytest.mark.parametrize("step", ["join_texts", "join_caches"])
def test_killed_while_the_parts_are_joined(step: str, videos: Path, alone: Path, tmp_path: Path) -> None:
    def killed() -> int:
        before(sys.modules[prepare.__module__], step, 1)
        return work(videos, tmp_path / "cache", Share())()

    assert in_a_fork(killed) == -signal.SIGKILL
    with pytest.raises(UserError, match="unfinished"):
        LatentCache(tmp_path / "cache")
    assert in_a_fork(work(videos, tmp_path / "cache", Share())) == 0
    assert snapshot(tmp_path / "cache") == snapshot(alone)


def test_killed_runs_may_be_continued_by_another_number(videos: Path, alone: Path, tmp_path: Path) -> None:
    def killed() -> int:
        before(Pooling, "encode_video", 5)
        return work(videos, tmp_path / "cache", Share())()

    assert in_a_fork(killed) == -signal.SIGKILL
    assert at_once([work(videos, tmp_path / "cache", share) for share in shares(3)]) == [0, 3, 3]
    assert snapshot(tmp_path / "cache") == snapshot(alone)


def test_a_second_writer_is_refused_and_nothing_is_lost(videos: Path, alone: Path, tmp_path: Path) -> None:
    ours, theirs = Pipe()

    class Waiting(Pooling):
        def encode_video(self, frames: np.ndarray) -> Tensor:
            theirs.send("in the middle of a part")
            assert theirs.recv() == "continue"
            type(self).encode_video = Pooling.encode_video  # type: ignore[method-assign]
            return super().encode_video(frames)

    def first() -> int:
        kill_preparation.Pooling = Waiting  # type: ignore[misc]
        return work(videos, tmp_path / "cache", Share())()

    child = os.fork()
    if child == 0:
        os._exit(in_a_fork(first) % 256)
    assert ours.recv() == "in the middle of a part"
    with pytest.raises(FolderInUse) as caught:
        kill_preparation.run(videos, tmp_path / "cache", part_size=PART)
    assert str(caught.value) == (
        f"another process is writing into the latent cache {tmp_path / 'cache'}: wait for it or end it"
    )
    ours.send("continue")
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert snapshot(tmp_path / "cache") == snapshot(alone)


@pytest.mark.parametrize("begun", ["finished", "unfinished"])
def test_a_share_that_is_cut_in_another_way_is_refused_at_once(begun: str, videos: Path, tmp_path: Path) -> None:
    def killed() -> int:
        if begun == "unfinished":
            before(CacheWriter, "finish", 1)
        return work(videos, tmp_path / "cache", Share(1, 2, range(0)))()

    assert in_a_fork(killed) == (-signal.SIGKILL if begun == "unfinished" else 3)
    held = snapshot(tmp_path / "cache")
    with pytest.raises(UserError, match="was begun with dtype 'float16', this run has 'bfloat16'"):
        kill_preparation.run(videos, tmp_path / "cache", part_size=PART, share=Share(0, 2, range(2)), dtype="bfloat16")
    assert snapshot(tmp_path / "cache") == held


def test_who_is_not_the_only_one_to_complete_a_cache_leaves_it_to_another(
    videos: Path, alone: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    first, second = (Share(index, 2, range(index, index + 1)) for index in range(2))
    assert kill_preparation.run(videos, cache, part_size=PART, share=first) is None
    other = FolderLock(cache, "the cache")
    other.acquire()
    assert kill_preparation.run(videos, cache, part_size=PART, share=second) is None
    with pytest.raises(FolderInUse):
        kill_preparation.run(videos, cache, part_size=PART)
    other.release()
    assert kill_preparation.run(videos, cache, part_size=PART, share=first) is not None
    assert snapshot(cache) == snapshot(alone)


def test_if_nothing_can_be_used_nothing_is_left(videos: Path, tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    for index in (2, 3, 5):
        for suffix in ("mp4", "txt"):
            (tmp_path / f"videos/{index}.{suffix}").write_bytes((videos / f"2.{suffix}").read_bytes())
    with pytest.raises(UserError, match=r"no file in .*videos can be used \(3 too short\); the first, 2\.mp4: holds"):
        kill_preparation.run(tmp_path / "videos", tmp_path / "cache", part_size=PART)
    assert not (tmp_path / "cache").exists()
