"""Adaptive weights of any term: what is usual is remembered by band, and the weight carries no gradient."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from avd.objectives.adaptive import BANDS, weigh_by_band
from avd.objectives.term import Sample, Setting
from avd.types import LossTerm
from helpers.cycles import make_batch, make_cycle, update_random

LEVELS = 16
SETTING = Setting((1.0,), lambda count: torch.zeros(0))


def losses(sample: Sample) -> LossTerm:
    """The output is the loss."""
    return LossTerm("toy", sample.output_BCFHW.square(), {"toy_square": 1.0})


def made(values: list[float], places: list[int]) -> Sample:
    """A sample of given losses at given places of the grid."""
    leaf = torch.tensor(values, dtype=torch.float64).sqrt().requires_grad_()
    return Sample(leaf, None, None, index_B=torch.tensor(places))  # type: ignore[arg-type]


def test_a_sample_worse_than_usual_in_its_band_loses_weight() -> None:
    term = weigh_by_band("toy", losses, LEVELS, 0.5, 2.0, SETTING)
    first = term(made([1.0, 3.0, 5.0, 5.0], [0, 1, 14, 15]))  # 0 and 1 are one band of two levels, 14 and 15 another
    assert first.per_sample_B.tolist() == pytest.approx([0.5, 1.5, 2.5, 2.5])  # nothing is usual yet
    assert first.metrics == {"toy_square": 1.0, "toy_weight": 0.5}
    term.commit()
    values = [2.0, 2.0 + 2**0.5, 2.0 - 2**0.5, 9.0]
    weight_B = term(made(values, [0, 1, 1, 15])).per_sample_B.detach() / torch.tensor(values)
    expected = 1 - torch.sigmoid(2.0 * torch.tensor([0.0, 1.0, -1.0, 0.0]))  # the last band's losses do not differ
    assert weight_B.tolist() == pytest.approx(expected.tolist())
    term.commit()
    means = term.means.mean_S.tolist()
    assert (means[0], means[-1]) == pytest.approx((2.0, 0.5 * 5.0 + 0.5 * 9.0))
    assert term.means.seen_S.sum() == 2 and len(means) == BANDS


def test_the_weight_carries_no_gradient() -> None:
    term = weigh_by_band("toy", losses, LEVELS, 0.5, 2.0, SETTING)
    term(made([1.0, 2.0], [3, 3]))
    term.commit()
    sample = made([4.0], [3])
    found = term(sample)
    (gradient,) = torch.autograd.grad(found.per_sample_B.sum(), sample.output_BCFHW)
    weight = found.per_sample_B.detach() / 4.0
    torch.testing.assert_close(gradient, weight * 2 * 2.0)
    assert weight.item() < 0.01


def test_what_is_usual_is_saved_under_the_terms_name() -> None:
    term, resumed = (weigh_by_band("toy", losses, LEVELS, 0.5, 2.0, SETTING) for _ in range(2))
    term(made([1.0, 2.0, 3.0], [0, 0, 15]))
    term.commit()
    assert set(term.state_dict()) == {"toy.mean", "toy.seen", "toy.variance", "toy.concentration"}
    resumed.load_state_dict(term.state_dict())
    sample = made([2.0, 2.0], [0, 15])
    assert torch.equal(resumed(sample).per_sample_B, term(sample).per_sample_B)


@pytest.mark.parametrize(("recipe", "name"), [("lcm", "consistency"), ("pcm", "phased_consistency")])
def test_a_recipe_weighs_the_consistency_losses(recipe: str, name: str) -> None:
    """With k = 0 every weight is 1/2, and so is the loss; a batch in parts weighs as the full one."""

    def run(*changes: str) -> tuple[dict[str, float], dict[str, Tensor]]:
        cycle = make_cycle(*(f"objective.{name}.{change}" for change in changes), recipe=recipe)
        metrics = [cycle.run(make_batch(cycle.recipe), update_random(n)) for n in range(2)]
        return metrics[0], cycle.step.tensors()

    plain, nothing = run()
    half, remembered = run("adaptive=true", "k=0")
    assert half[name] == pytest.approx(plain[name] / 2) and half[f"{name}_weight"] == 0.5
    assert f"{name}_weight" not in plain and not nothing and f"{name}.mean" in remembered
    cycles = [
        make_cycle(f"objective.{name}.adaptive=true", f"objective.{name}.k=5", *part, recipe=recipe)
        for part in ((), ("compute.microbatch=2",))
    ]
    for n in range(2):
        full, parts = (cycle.run(make_batch(cycle.recipe), update_random(n)) for cycle in cycles)
        assert parts == pytest.approx(full, rel=1e-4)
    means = [cycle.step.tensors()[f"{name}.mean"] for cycle in cycles]
    torch.testing.assert_close(means[0], means[1], rtol=1e-4, atol=1e-6)
