"""Captions: a small grammar that often leaves things open, and what each caption promises.

A caption is one clause per object ("a red ball drifting left and a blue box at rest"), or a bare count ("two objects").
Whatever is left out is open: many clips are right, and a model that always answers with one of them has collapsed.
`read_promises` reads the promises back from the text alone, so clips that come from elsewhere can be judged too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from avd.world.palette import COLOURS
from avd.world.scene import DIRECTIONS, SHAPES, Scene, Thing

_SHAPE_WORDS = {
    "ball": ("ball", "circle"),
    "box": ("box", "square"),
    "triangle": ("triangle",),
    "diamond": ("diamond",),
    "ring": ("ring",),
}
_STILL = ("at rest", "standing still", "not moving")
_VERBS = {"slow": ("drifting", "creeping", "moving slowly"), "fast": ("rushing", "racing", "moving fast")}
_MOVING = ("moving", "going", "heading")
_COUNT_WORDS = {1: "one", 2: "two", 3: "three"}
_PREFIXES = ("", "", "a clip of ", "a video of ")

_SPEED_OF = {
    **{word: "still" for word in ("rest", "still", "not")},
    **{word: "slow" for word in ("drifting", "creeping", "slowly")},
    **{word: "fast" for word in ("rushing", "racing", "fast")},
    **{word: "moving" for word in _MOVING},
}
_SPEED_RANK = ("still", "slow", "fast", "moving")  # the most telling word wins: "not moving" is still
_SHAPE_OF = {word: shape for shape, words in _SHAPE_WORDS.items() for word in words}
_COUNT_OF = {word: count for count, word in _COUNT_WORDS.items()}


def _any(words: Iterable[str]) -> str:
    return f"(?:{'|'.join(map(re.escape, words))})"


_NOUN = _any([*_SHAPE_OF, "object", "thing"])
_VERB = _any([*(verb for verbs in _VERBS.values() for verb in verbs), *_MOVING])
_CLAUSE = (
    rf"(?:(?:an?|one) (?:{_any(COLOURS)} )?{_NOUN}|something {_any(COLOURS)})"
    rf"(?: {_any(_STILL)}| {_VERB}(?: (?:to the )?{_any(DIRECTIONS)})?)?"
)
_CAPTION = re.compile(
    rf"(?:a (?:clip|video) of )?(?:{_any(_COUNT_WORDS.values())} objects|{_CLAUSE}(?: and {_CLAUSE})*)"
)


@dataclass(frozen=True)
class ThingPromise:
    """What a caption says of one object; None is open. Speed is still, slow, fast or moving (slow or fast)."""

    colour: str | None = None
    shape: str | None = None
    speed: str | None = None
    direction: str | None = None


@dataclass(frozen=True)
class Promises:
    """What a caption says of a clip. Count is None where open, and then the objects named are the least there are."""

    count: int | None
    things: tuple[ThingPromise, ...]


@dataclass(frozen=True)
class Caption:
    text: str
    promises: Promises


def write_caption(rng: np.random.Generator, scene: Scene) -> Caption:
    """Describe `scene` truly, leaving each of count, colour, shape, speed and direction open with some chance."""
    prefix = _pick(rng, _PREFIXES)
    things = scene.things
    if len(things) > 1 and rng.random() < 0.1:
        return Caption(f"{prefix}{_COUNT_WORDS[len(things)]} objects", Promises(len(things), ()))
    if len(things) > 1 and rng.random() < 0.2:  # name one object and leave open what else is there
        text, promise = _clause(rng, things[0], "a")
        return Caption(prefix + text, Promises(None, (promise,)))
    if len(things) == 1:
        count = 1 if rng.random() < 0.7 else None
        text, promise = _clause(rng, things[0], "one" if count else "a")
        return Caption(prefix + text, Promises(count, (promise,)))
    clauses, promises = zip(*(_clause(rng, thing, "a") for thing in things), strict=True)
    return Caption(prefix + " and ".join(clauses), Promises(len(things), promises))


def read_promises(text: str) -> Promises:
    """The promises of a caption written in the grammar's words; words it does not know promise nothing."""
    words = re.findall(r"[a-z]+(?:-[a-z]+)?", text.lower())
    while words[:1] == ["a"] and words[1:2] in (["clip"], ["video"]):
        words = words[3:]
    clauses: list[list[str]] = [[]]
    for word in words:
        if word == "and":
            clauses.append([])
        else:
            clauses[-1].append(word)
    if len(clauses) == 1 and words[:1] and words[0] in _COUNT_OF and words[1:2] == ["objects"]:
        return Promises(_COUNT_OF[words[0]], ())
    promises = tuple(_read_clause(clause) for clause in clauses if clause)
    single = len(clauses) == 1
    count = (1 if words[:1] == ["one"] else None) if single else len(promises)
    return Promises(count, promises)


def is_caption(text: str) -> bool:
    """Whether the grammar can write `text`, but for case, spaces and punctuation."""
    return _CAPTION.fullmatch(" ".join(re.findall(r"[\w-]+", text.lower()))) is not None


def unknown_words(text: str) -> list[str]:
    """The words of `text` that the grammar never writes, in lower case: a caption of the world has none."""
    known = vocabulary()
    return [word for word in re.findall(r"[\w-]+", text.lower()) if word not in known]


def vocabulary() -> tuple[str, ...]:
    """Every word the grammar can write, sorted."""
    texts = [*_STILL, *(v for verbs in _VERBS.values() for v in verbs), *_MOVING, *_PREFIXES, *_COUNT_WORDS.values()]
    texts += [*COLOURS, *DIRECTIONS, *_SHAPE_OF, "something and a an to the object objects thing"]
    return tuple(sorted({word for text in texts for word in text.split()}))


def _clause(rng: np.random.Generator, thing: Thing, article: str) -> tuple[str, ThingPromise]:
    colour = thing.colour if rng.random() < 0.75 else None
    shape = thing.shape if rng.random() < 0.75 else None
    noun = _pick(rng, _SHAPE_WORDS[thing.shape]) if shape else _pick(rng, ("object", "thing"))
    if article == "a" and not shape and colour and rng.random() < 0.5:
        name = f"something {colour}"
    else:
        name = " ".join(filter(None, (article, colour, noun)))
        name = re.sub(r"^a (?=[aeiou])", "an ", name)
    motion, speed, direction = _motion(rng, thing)
    return f"{name} {motion}".strip(), ThingPromise(colour, shape, speed, direction)


def _motion(rng: np.random.Generator, thing: Thing) -> tuple[str, str | None, str | None]:
    """Words, promised speed and promised direction."""
    say_speed, say_direction = rng.random() < 0.45, rng.random() < 0.45
    if thing.speed == "still":
        return (_pick(rng, _STILL), "still", None) if say_speed else ("", None, None)
    way = thing.direction if rng.random() < 0.5 or "-" in thing.direction else f"to the {thing.direction}"
    if thing.direction in ("up", "down"):
        way = thing.direction
    if say_speed:
        verb = _pick(rng, _VERBS[thing.speed])
        return (f"{verb} {way}", thing.speed, thing.direction) if say_direction else (verb, thing.speed, None)
    if say_direction:
        return f"{_pick(rng, _MOVING)} {way}", "moving", thing.direction
    return "", None, None


def _read_clause(words: list[str]) -> ThingPromise:
    colour = next((w for w in words if w in COLOURS), None)
    shape = next((_SHAPE_OF[w] for w in words if w in _SHAPE_OF), None)
    assert shape is None or shape in SHAPES
    speeds = {_SPEED_OF[w] for w in words if w in _SPEED_OF}
    speed = next((s for s in _SPEED_RANK if s in speeds), None)
    direction = next((w for w in words if w in DIRECTIONS), None)
    return ThingPromise(colour, shape, speed, direction)


def _pick(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    return options[int(rng.random() * len(options))]
