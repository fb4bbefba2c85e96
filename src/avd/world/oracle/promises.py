"""Which of a caption's promises a clip keeps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

from avd.world.grammar import Promises, ThingPromise

ATTRIBUTES = ("count", "colour", "shape", "direction", "speed")


@dataclass(frozen=True)
class ObjectReading:
    """What is measured of one object, in the caption's terms."""

    colour: str
    shape: str
    speed: str
    """still, slow or fast."""
    direction: str | None
    """Direction of the first movement; None when still."""
    pace: float
    """Sides per frame."""


@dataclass(frozen=True)
class KeptPromises:
    """The outcome of a clip, under the match of promised things to objects that keeps most promises."""

    kept: dict[str, tuple[int, int]]
    """Promises kept and promises made, for each attribute of `ATTRIBUTES` on which there is a promise."""
    match: tuple[int | None, ...]
    """For each promised thing, the index of the object that stands for it; None where there are too few objects."""

    @property
    def accuracy(self) -> float | None:
        """Share of the promises that are kept, in [0, 1]; None where nothing is promised."""
        made = sum(made for _, made in self.kept.values())
        return sum(good for good, _ in self.kept.values()) / made if made else None


def check_promises(promises: Promises, objects: Sequence[ObjectReading]) -> KeptPromises:
    """Match the things of `promises` to `objects` and count what is kept."""
    things = promises.things
    seats: list[int | None] = [*range(len(objects)), *[None] * max(len(things) - len(objects), 0)]

    def count_kept(match: tuple[int | None, ...]) -> int:
        return sum(
            _keeps(thing, attribute, objects[seat])
            for thing, seat in zip(things, match, strict=True)
            if seat is not None
            for attribute in _promised(thing)
        )

    match = max(permutations(seats, len(things)), key=count_kept)
    counts: dict[str, tuple[int, int]] = {}
    if promises.count is not None:
        counts["count"] = (int(promises.count == len(objects)), 1)
    for thing, seat in zip(things, match, strict=True):
        for attribute in _promised(thing):
            good, made = counts.get(attribute, (0, 0))
            counts[attribute] = (good + (seat is not None and _keeps(thing, attribute, objects[seat])), made + 1)
    return KeptPromises(counts, match)


def _promised(thing: ThingPromise) -> list[str]:
    return [name for name in ATTRIBUTES[1:] if getattr(thing, name) is not None]


def _keeps(thing: ThingPromise, attribute: str, found: ObjectReading) -> bool:
    if attribute == "speed" and thing.speed == "moving":
        return found.speed != "still"
    return bool(getattr(thing, attribute) == getattr(found, attribute))
