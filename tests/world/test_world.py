"""The built-in world: its bytes, its splits, its captions and its scenes."""

from __future__ import annotations

import hashlib
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avd.world import LEVELS, Promises, ThingPromise, World, is_caption, read_promises, vocabulary
from avd.world.scene import SPEED_SHARE, scene_rng

PINNED = {
    0: "da5d042f63936c76",
    1: "de2f6c997b393181",
    2: "3b1eb2b294f3d435",
}


@pytest.mark.parametrize("level", PINNED)
def test_same_seed_gives_same_bytes_on_every_machine(level: int) -> None:
    digest = hashlib.sha256()
    world = World(level=level)
    for index in range(4):
        clip = world.clip(index)
        digest.update(clip.video.tobytes())
        digest.update(clip.caption.text.encode())
    assert digest.hexdigest()[:16] == PINNED[level]


def test_splits_and_seeds_are_disjoint() -> None:
    streams = [
        scene_rng(seed, split, index).random()
        for seed in (0, 1)
        for split in ("train", "heldout")
        for index in range(500)
    ]
    assert len(set(streams)) == len(streams)
    world = World()
    train = {world.clip(index).video.tobytes() for index in range(20)}
    assert not train & {world.clip(index, "heldout").video.tobytes() for index in range(20)}


@given(index=st.integers(0, 10**9), level=st.integers(0, len(LEVELS) - 1))
@settings(max_examples=300, deadline=None, derandomize=True)
def test_captions_say_what_they_promise_and_promise_what_is_so(index: int, level: int) -> None:
    scene, caption = World(level=level).describe(index)
    assert read_promises(caption.text) == caption.promises
    assert set(caption.text.split()) <= set(vocabulary())
    assert caption.promises.count in (None, len(scene.things))
    promised = caption.promises.things
    for thing, promise in zip(scene.things, promised, strict=False):
        assert promise.colour in (None, thing.colour)
        assert promise.shape in (None, thing.shape)
        assert promise.speed in (None, thing.speed) or (promise.speed == "moving" and thing.speed != "still")
        assert promise.direction is None or (promise.direction == thing.direction and thing.speed != "still")


def test_unknown_words_promise_nothing() -> None:
    assert read_promises("a cat, surprised") == Promises(None, (ThingPromise(),))


def test_still_slow_and_fast_clips_are_well_represented() -> None:
    world = World()
    first = Counter(world.describe(index)[0].things[0].speed for index in range(1000))
    for speed, share in SPEED_SHARE.items():
        assert first[speed] / 1000 == pytest.approx(share, abs=0.05)


def test_captions_often_leave_things_open() -> None:
    world = World()
    captions = [world.describe(index)[1].promises for index in range(1000)]
    things = [thing for promises in captions for thing in promises.things]
    for attribute, least in {"colour": 0.2, "shape": 0.2, "speed": 0.3, "direction": 0.4}.items():
        share = np.mean([getattr(thing, attribute) is None for thing in things])
        assert least < share < 0.9, attribute
    assert 0.1 < np.mean([promises.count is None for promises in captions]) < 0.5


def test_objects_of_level_0_never_touch() -> None:
    world = World()
    for index in range(300):
        scene, _ = world.describe(index)
        assert len(scene.things) <= 2
        if len(scene.things) == 2:
            a, b = scene.things
            for frame in range(world.frames):
                gap = np.hypot(*np.subtract(a.centre(frame), b.centre(frame)))
                assert gap > a.radius + b.radius


@pytest.mark.parametrize("level", range(len(LEVELS)))
def test_every_level_renders_within_its_means(level: int) -> None:
    world = World(level=level, size=32, frames=9)
    colours, shapes, directions = set(), set(), set()
    for index in range(60):
        clip = world.clip(index)
        assert clip.video.shape == (9, 32, 32, 3)
        assert clip.video.dtype == np.uint8
        assert clip.video.std() > 5
        assert 1 <= len(clip.scene.things) <= LEVELS[level].max_objects
        colours |= {thing.colour for thing in clip.scene.things}
        shapes |= {thing.shape for thing in clip.scene.things}
        directions |= {thing.direction for thing in clip.scene.things}
        for thing in clip.scene.things:
            for frame in range(9):
                assert all(thing.radius - 1e-9 <= place <= 1 - thing.radius + 1e-9 for place in thing.centre(frame))
    assert colours == set(LEVELS[level].colours)
    assert shapes == set(LEVELS[level].shapes)
    assert directions == set(LEVELS[level].directions)


def test_unknown_level_and_tiny_frames_are_refused() -> None:
    with pytest.raises(ValueError, match="level is 9"):
        World(level=9)
    with pytest.raises(ValueError, match="16 pixels"):
        World(size=8).clip(0)


@pytest.mark.parametrize("level", range(len(LEVELS)))
def test_what_the_grammar_writes_it_knows(level: int) -> None:
    world = World(level)
    texts = [world.describe(i, "heldout", caption=c)[1].text for i in range(300) for c in (0, 1)]
    assert [text for text in texts if not is_caption(text)] == []


@pytest.mark.parametrize(
    "text",
    ["", "three", "red red ball the the", "a ball red", "a red ball and", "two ball", "drifting left", "a red cat"],
)
def test_what_the_grammar_cannot_write_is_no_caption(text: str) -> None:
    assert not is_caption(text)


@pytest.mark.parametrize("text", ["A red ball.", "one box  moving fast", "something green", "two objects"])
def test_case_spaces_and_punctuation_do_not_matter(text: str) -> None:
    assert is_caption(text)
