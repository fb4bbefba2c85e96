"""Metrics of many clips: means, and the diversity of what captions leave open."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence

from avd.world.grammar import Promises, ThingPromise, read_promises
from avd.world.oracle.judge import ClipScores

OPEN_ATTRIBUTES = ("colour", "speed", "direction")


def summarise(scores: Sequence[ClipScores], reference_speed: float | None = None) -> dict[str, float | None]:
    """Means over clips.

    `reference_speed` is the mean speed of rendered clips of the same captions, in sides per frame; `speed_ratio` is
    None without it, and `caption_accuracy` where no caption promises anything. Raises ValueError without clips.
    """
    if not scores:
        raise ValueError("no clips to summarise: judge at least one")
    accuracies = [clip.caption_accuracy for clip in scores if clip.caption_accuracy is not None]
    speed = _mean([clip.speed for clip in scores])
    return {
        "saturation_error": _mean([clip.saturation_error for clip in scores]),
        "saturation_signed": _mean([clip.saturation_signed for clip in scores]),
        "clipped_share": _mean([clip.clipped_share for clip in scores]),
        "dynamic_degree": _mean([float(clip.dynamic) for clip in scores]),
        "speed": speed,
        "speed_ratio": speed / reference_speed if reference_speed else None,
        "flow": _mean([clip.flow for clip in scores]),
        "instance_preservation": _mean([float(clip.instance_preserved) for clip in scores]),
        "intact_share": _mean([clip.intact_share for clip in scores]),
        "caption_accuracy": _mean(accuracies) if accuracies else None,
        "flicker": _mean([clip.flicker for clip in scores]),
    }


def diversity(scores_by_caption: Mapping[str, Sequence[ClipScores]]) -> dict[str, float | None]:
    """For colour, speed and direction: the probability that two clips of one caption differ in what it leaves open.

    Each caption comes with its clips of several seeds. Every pair of them is compared in the attribute of all objects
    whose attribute is open (in the order the caption names them; of all objects, sorted, where it names none), so the
    metric (Gini-Simpson index, unbiased for any number of seeds from two on) is 0 for a model that always answers the
    same and can be compared with that of rendered clips. Averaged over captions; None where no caption leaves the
    attribute open. Raises ValueError for a caption with fewer than two clips.
    """
    found: dict[str, list[float]] = {name: [] for name in OPEN_ATTRIBUTES}
    for caption, clips in scores_by_caption.items():
        if len(clips) < 2:
            raise ValueError(f"caption {caption!r} has {len(clips)} clip: diversity needs two or more seeds")
        promises = read_promises(caption)
        for name, differing in found.items():
            if _leaves_open(promises, name):
                differing.append(_share_of_differing_pairs([_answer(clip, promises, name) for clip in clips]))
    return {name: _mean(values) if values else None for name, values in found.items()}


def _leaves_open(promises: Promises, name: str) -> bool:
    return not promises.things or any(_is_open(thing, name) for thing in promises.things)


def _is_open(thing: ThingPromise, name: str) -> bool:
    """What rests has no direction to leave open, and "moving" does not say how fast."""
    if name == "direction" and thing.speed == "still":
        return False
    return getattr(thing, name) is None or (name == "speed" and thing.speed == "moving")


def _answer(clip: ClipScores, promises: Promises, name: str) -> Hashable:
    if not promises.things:
        return tuple(sorted(str(getattr(found, name)) for found in clip.objects))
    return tuple(
        None if seat is None else getattr(clip.objects[seat], name)
        for thing, seat in zip(promises.things, clip.match, strict=True)
        if _is_open(thing, name)
    )


def _share_of_differing_pairs(answers: Sequence[Hashable]) -> float:
    pairs = len(answers) * (len(answers) - 1)
    return 1.0 - sum(count * (count - 1) for count in Counter(answers).values()) / pairs


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
