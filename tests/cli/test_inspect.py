"""What `avd inspect` shows of a cache, and what it costs."""

from __future__ import annotations

from avd.cli.inspect import first_different


class Counted(str):
    """A text that counts how often such texts are compared."""

    compared = 0
    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        Counted.compared += 1
        return str.__eq__(self, other)


def test_examples_of_captions_are_the_first_ones_and_cost_one_pass() -> None:
    captions = [Counted(f"caption {i // 2}") for i in range(2000)]
    assert first_different(captions) == [f"caption {i}" for i in range(5)]
    assert Counted.compared <= len(captions), "each with the one before it at most, and not with all"
