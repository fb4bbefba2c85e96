"""The videos that a run's monitors make: always the same prompts and noise, dealt to the ranks in rounds.

Each monitored clip of the data has one video, from its own fixed noise. With the suite `native` some of the prompts
have further videos from other noise, further seeds, to be compared with the first.

In a round each rank samples one batch, no larger than training's own parts: a measurement takes no more memory than an
update. Sharded networks are gathered by all ranks at once, so all must call them equally often. Where clips do not
divide by ranks, those that are one short sample another's clip too, and nothing is measured of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from avd.config import Recipe
from avd.data import LatentSource
from avd.engine.randomness import generator_for
from avd.engine.ranks import Ranks
from avd.types import Conditions


@dataclass(frozen=True)
class Round:
    """Positions of clips among the monitors'."""

    clips: range
    """Those of all ranks."""
    own: range
    """Those that this rank measures; may be none."""
    sampled: tuple[int, ...]
    """Those that this rank samples: its own, and one more where other ranks have one more."""


def deal_rounds(count: int, batch: int, ranks: Ranks) -> list[Round]:
    """`count` clips in as few rounds as batches of at most `batch` clips per rank make."""
    size, rounds = ranks.data_size, []
    for start in range(0, count, batch * size):
        clips = range(start, min(start + batch * size, count))
        own, most = clips[ranks.data_rank :: size], -(-len(clips) // size)
        rounds.append(Round(clips, own, (*own, *clips[: most - len(own)])))
    return rounds


class MonitorClips:
    """`monitors.clips` items of a run's data, spread evenly, with the noise that their videos are sampled from.

    Videos are known by their position. Those of the first seed come first, in the order of the clips.
    """

    def __init__(self, recipe: Recipe, source: LatentSource, ranks: Ranks) -> None:
        self._seed, self._source = recipe.seed, source
        self._shape = source.latents([0]).shape[1:]
        count = min(recipe.monitors.clips, len(source))
        self.indices = [i * len(source) // count for i in range(count)]
        """Where in the data the clips are."""
        prompts, seeds = recipe.monitors.seeds_of(count)
        several = [i * count // prompts for i in range(prompts)]
        self.videos = [(index, 0) for index in self.indices]
        """The clip in the data and the seed, from 0, of each video."""
        self.groups: list[list[int]] = []
        """The videos of each prompt that has several."""
        for i in several:
            first = len(self.videos)
            self.videos += [(self.indices[i], seed) for seed in range(1, seeds)]
            self.groups.append([i, *range(first, len(self.videos))])
        trained = recipe.training.batch // ranks.data_size
        most = min(recipe.compute.microbatch or trained, trained)
        self.rounds = deal_rounds(len(self.videos), most, ranks)
        self.real_rounds = deal_rounds(count, most, ranks)
        """The same for the clips of the data, each of which is there once."""

    def prompts(self, positions: Sequence[int]) -> Conditions:
        return self._source.prompts([self.videos[i][0] for i in positions])

    def noise(self, positions: Sequence[int]) -> Callable[[int | str], Tensor]:
        """The noise (B, C, F, H, W) of videos by stage; that of "start" is what they begin from."""

        def draw(stage: int | str) -> Tensor:
            each = (self._generator(stage, *self.videos[i]) for i in positions)
            return torch.stack([torch.randn(*self._shape, generator=generator) for generator in each])

        return draw

    def real(self, positions: Sequence[int]) -> Tensor:
        """Latents (B, C, F, H, W) of the real clips."""
        return self._source.latents([self.indices[i] for i in positions])

    def _generator(self, stage: int | str, index: int, seed: int) -> torch.Generator:
        further = ("seed", seed) if seed else ()
        return generator_for(self._seed, "monitor", stage, index, *further)
