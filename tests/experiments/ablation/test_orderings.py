"""Changes between rows with their errors, and what they say of an expected order."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from avd.config import AblationRecipe
from avd.evaluation.rows import Row
from avd.evaluation.suites import declared_measures
from avd.experiments.ablation.orderings import (
    Agreement,
    compare_rows,
    comparison_sentences,
    describe_comparison,
    describe_ordering,
)

MakeRow = Callable[..., Row]
KEY = "dynamic_degree"
T2 = 4.302653  # Student's t of two degrees of freedom, 97.5 %


@pytest.fixture
def rows(make_row: MakeRow) -> Callable[..., list[Row]]:
    def make(values: Sequence[float], error: float = 0.0) -> list[Row]:
        errors = {"world": {KEY: error}}
        return [make_row(seed=seed, dynamic_degree=value, errors=errors) for seed, value in enumerate(values)]

    return make


def test_seeds_are_compared_in_pairs(rows: Callable[..., list[Row]]) -> None:
    found = compare_rows(rows([0.5, 0.7, 0.9]), rows([0.4, 0.58, 0.82]), "world", KEY)
    assert found is not None and found.change == pytest.approx(0.1)
    assert found.half_width == pytest.approx(T2 * 0.02 / 3**0.5, rel=1e-4)  # spread of 0.1, 0.12, 0.08
    assert found.agreement(+0.3) is Agreement.agrees and found.agreement(-0.3) is Agreement.disagrees


def test_the_measures_own_error_counts_where_seeds_agree_by_chance(rows: Callable[..., list[Row]]) -> None:
    found = compare_rows(rows([0.5, 0.6, 0.7], 0.06), rows([0.45, 0.55, 0.65], 0.08), "world", KEY)
    assert found is not None
    assert found.half_width == pytest.approx(1.96 * 0.1)
    assert found.agreement(+1.0) is Agreement.undecided


def test_more_seeds_tell_nothing_of_other_captions(rows: Callable[..., list[Row]]) -> None:
    """Three seeds that all gain 2.5 points, where a share is known to 1.5: the captions alone may have given them."""
    widths = []
    for seeds in (3, 12):
        found = compare_rows(rows([0.525] * seeds, 0.015), rows([0.5] * seeds, 0.015), "world", KEY)
        assert found is not None and found.agreement(+1.0) is Agreement.undecided
        widths.append(found.half_width)
    assert widths == pytest.approx([1.96 * 0.015 * 2**0.5] * 2)


def test_one_seed_decides_nothing_and_none_is_no_change(rows: Callable[..., list[Row]]) -> None:
    found = compare_rows(rows([0.9]), rows([0.1, 0.2]), "world", KEY)
    assert found is not None and found.seeds == 1 and found.agreement(1.0) is Agreement.undecided
    assert compare_rows(rows([0.9]), rows([0.1])[1:], "world", KEY) is None
    assert compare_rows(rows([0.9]), rows([0.1]), "native", KEY) is None


def test_the_sentence_has_both_changes(rows: Callable[..., list[Row]]) -> None:
    measure = declared_measures("world")[KEY]
    found = compare_rows(rows([0.5, 0.7, 0.9]), rows([0.4, 0.58, 0.82]), "world", KEY)
    text = describe_ordering(("avd", "dmd"), measure, (0.9972, 0.7222), found)
    assert text == ("avd against dmd, dynamic degree: the paper has +27.5 points, here +10.0 ± 5.0 points: agrees.")
    one = compare_rows(rows([0.5]), rows([0.4]), "world", KEY)
    assert describe_ordering(("avd", "dmd"), measure, (0.9, 0.7), one).endswith(
        "one seed here +10.0 points: undecided."
    )


@pytest.mark.parametrize(
    ("others", "text"),
    [
        ([0.4, 0.58, 0.82], "here +10.0 ± 5.0 points: higher."),
        ([0.6, 0.82, 0.98], "here -10.0 ± 5.0 points: lower."),
        ([0.5, 0.6, 0.98], "here +0.7 ± 22.4 points: undecided."),
        ([0.4], "one seed here +10.0 points: undecided."),
    ],
)
def test_a_comparison_expects_no_sign(others: list[float], text: str, rows: Callable[..., list[Row]]) -> None:
    found = compare_rows(rows([0.5, 0.7, 0.9]), rows(others), "world", KEY)
    assert found is not None
    measure = declared_measures("world")[KEY]
    assert describe_comparison(("motion", "avd"), measure, found) == f"motion against avd, dynamic degree: {text}"


def test_sentences_say_what_tuning_has_made_of_their_rows(make_row: MakeRow) -> None:
    plan = AblationRecipe.model_validate(
        {"rows": [{"name": name, "recipe": "dmd"} for name in "abc"], "comparisons": [("a", "b"), ("b", "c")]}
    )
    found = [make_row(name=name, seed=seed, dynamic_degree=0.5) for name in "abc" for seed in (0, 1)]
    sentences = comparison_sentences(plan, found, {"a": "with k=3.0"})
    texts = {sentence["rows"]: sentence["text"] for sentence in sentences if "dynamic" in sentence["text"]}
    assert texts["a", "b"].endswith(": undecided. Compared as tuned: a with k=3.0.")
    assert texts["b", "c"].endswith(": undecided.")
