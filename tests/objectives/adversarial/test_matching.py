"""The values of adversarial matching, and what they cost."""

from __future__ import annotations

import pytest

from avd.objectives.adversarial.matching import AdversarialRecipe


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"depths": (0.5, 0.5)}, "depths are .0.5, 0.5.: they must rise"),
        ({"sigma_min": 0.9, "sigma_max": 0.5}, "sigma_min must be below sigma_max"),
        ({"depths": (0.0, 1.0)}, "greater than 0"),
    ],
)
def test_values_that_cannot_be_are_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        AdversarialRecipe(**changes)  # type: ignore[arg-type]


def test_the_slope_costs_one_more_call_of_the_teacher() -> None:
    assert AdversarialRecipe().heads.inputs == 2 and AdversarialRecipe(r1=1.0).heads.inputs == 3
