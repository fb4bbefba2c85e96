"""Measuring the monitors' clips: round by round they are sampled, decoded, and measured in threads.

Measures of a video are the work of numpy and OpenCV, which lets other threads of Python run. So a round is measured
while the next one is sampled, and no rank waits for it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import numpy as np
from torch import Tensor

from avd.distillation.monitoring.clips import MonitorClips, Round
from avd.distillation.monitoring.suites import MonitorRecord, MonitorSuite
from avd.engine.ranks import Ranks
from avd.engine.stopping import Heed
from avd.sampling.rollout import Renoise
from avd.types import Conditions, Stopped

_THREADS = 4


class VideoSampler(Protocol):
    """What makes the videos. `noise` is (B, C, F, H, W), `prompts` one row per clip, all on the CPU."""

    @property
    def fps(self) -> float:
        """Frames per second of the videos."""
        ...

    @property
    def default_teacher_steps(self) -> int:
        """Steps of the teacher's videos where a recipe does not say."""
        ...

    def student(self, noise: Tensor, prompts: Conditions, renoise: Renoise, heed: Heed) -> Tensor:
        """Latents of the averaged student's rollout."""
        ...

    def teacher(self, noise: Tensor, prompts: Conditions, steps: int, heed: Heed) -> Tensor:
        """Latents of the teacher in `steps` steps."""
        ...

    def decode(self, latents: Tensor) -> np.ndarray:
        """uint8 videos (B, F, H, W, 3)."""
        ...

    def rest(self) -> None:
        """Called when no video is wanted for a while."""
        ...


Measured = Iterator[tuple[Round, list[MonitorRecord]]]
"""Rounds in turn, each with the records of the clips of all ranks, the same on every rank."""


class ClipMeter:
    """Measures rounds of a run's clips; all ranks must measure the same. If `heed` raises, rounds that were sampled
    before are measured first."""

    def __init__(self, clips: MonitorClips, sampler: VideoSampler, suite: MonitorSuite, ranks: Ranks) -> None:
        self.clips, self.suite = clips, suite
        self._sampler, self._ranks = sampler, ranks

    def student(self, heed: Heed) -> list[MonitorRecord]:
        """Each video of the averaged student."""

        def sample(turn: Round) -> Tensor:
            noise = self.clips.noise(turn.sampled)
            return self._sampler.student(noise("start"), self.clips.prompts(turn.sampled), noise, heed)

        return [record for _, found in self._measure(self.clips.rounds, sample) for record in found]

    def teacher(self, rounds: Sequence[Round], steps: int, heed: Heed) -> Measured:
        """The teacher's videos of some rounds."""

        def sample(turn: Round) -> Tensor:
            start = self.clips.noise(turn.sampled)("start")
            return self._sampler.teacher(start, self.clips.prompts(turn.sampled), steps, heed)

        return self._measure(rounds, sample)

    def real(self, rounds: Sequence[Round], heed: Heed) -> Measured:
        """The real clips of some rounds."""

        def read(turn: Round) -> Tensor:
            heed()
            return self.clips.real(turn.own)

        return self._measure(rounds, read)

    def _measure(self, rounds: Sequence[Round], make: Callable[[Round], Tensor]) -> Measured:
        """`make` gives a round's latents, those of this rank's own clips first."""
        pool, under_way = ThreadPoolExecutor(_THREADS, "measure"), deque[tuple[Round, list[Future[MonitorRecord]]]]()
        try:
            for turn in rounds:
                try:
                    latents = make(turn)
                except Stopped:
                    yield from (self._gather(*each) for each in under_way)
                    raise
                videos = (self._sampler.decode(latents[i : i + 1])[0] for i in range(len(turn.own)))
                under_way.append((turn, [pool.submit(self.suite.measure, video) for video in videos]))
                if len(under_way) > 1:
                    yield self._gather(*under_way.popleft())
            yield from (self._gather(*each) for each in under_way)
        finally:
            pool.shutdown(cancel_futures=True)

    def _gather(self, turn: Round, jobs: list[Future[MonitorRecord]]) -> tuple[Round, list[MonitorRecord]]:
        own = [(position, job.result()) for position, job in zip(turn.own, jobs, strict=True)]
        records = {position: record for each in self._ranks.gather(own) for position, record in each}
        return turn, [records[position] for position in turn.clips]
