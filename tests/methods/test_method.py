"""What a recipe resolves to: only what its weights ask for, and an error where terms cannot go together."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

from avd.config import load_recipe
from avd.methods.method import Method
from avd.objectives.registry import terms
from avd.objectives.source import AtStages, DataSource, RolloutSource
from avd.objectives.term import ActiveTerm, Averaged, Learned
from avd.types import UserError


def resolved(*active: ActiveTerm) -> Method:
    recipe = load_recipe("avd")
    return Method.of(
        SimpleNamespace(
            objective=SimpleNamespace(active=active),
            rollout=recipe.rollout,
            fake_score=recipe.fake_score,
            end_timestep=recipe.end_timestep,
            trained_stages=recipe.trained_stages,
        )
    )  # type: ignore[arg-type]


def active(name: str, **changes: object) -> ActiveTerm:
    term = terms()[name]
    return ActiveTerm(replace(term, **changes), term.section(weight=1.0))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("recipe", "names", "auxiliaries", "rollouts"),
    [
        ("avd", ["distribution_matching", "temporal", "regression"], ["fake_score"], 1),
        ("dmd", ["distribution_matching"], ["fake_score"], 1),
        ("lcm", ["consistency"], ["target"], 0),
    ],
)
def test_a_recipe_resolves_to_what_it_weighs(
    recipe: str, names: list[str], auxiliaries: list[str], rollouts: int
) -> None:
    method = Method.of(load_recipe(recipe))
    assert [each.name for each in method.terms] == names
    assert [each.name for each in method.auxiliaries] == auxiliaries
    assert method.rollouts == rollouts


def test_fresh_rollouts_are_as_many_as_updates() -> None:
    assert Method.of(load_recipe("dmd", ["rollout.shared=false", "fake_score.updates=3"])).rollouts == 3


def test_equal_sources_are_one() -> None:
    method = Method.of(load_recipe("avd", ["objective.consistency.weight=1"]))
    assert len(method.sources) == 3
    assert [each.name for each in method.judging(RolloutSource())] == ["distribution_matching", "temporal"]
    assert [each.name for each in method.judging(DataSource(AtStages("regression")))] == ["regression"]


def test_a_target_that_is_the_student_is_no_network() -> None:
    assert Method.of(load_recipe("lcm", ["objective.consistency.target_ema=0"])).auxiliaries == ()


def test_terms_must_agree_on_an_auxiliary() -> None:
    other = active("temporal", auxiliaries=lambda section: (Averaged("fake_score", 0.9),))
    with pytest.raises(ValueError, match="temporal needs another fake_score than the terms before it"):
        resolved(active("distribution_matching"), other)


def test_an_auxiliary_that_learns_needs_a_rollout() -> None:
    with pytest.raises(ValueError, match="fake_score learns on rollouts, and no term judges one"):
        resolved(active("distribution_matching", source=lambda section: DataSource(AtStages("x"))))


def test_a_full_batch_is_one_of_rollouts() -> None:
    with pytest.raises(ValueError, match="temporal needs the full batch at once"):
        resolved(active("temporal", source=lambda section: DataSource(AtStages("x"))))


def test_one_term_pairs_the_rollouts_of_a_method() -> None:
    pairs = active("temporal", paired=lambda section: True)
    assert resolved(active("distribution_matching"), pairs).paired
    assert resolved(active("distribution_matching"), pairs).learns_from_clips
    alone = resolved(active("distribution_matching"))
    assert not alone.paired and not alone.learns_from_clips


def test_only_rollouts_are_paired_with_real_clips() -> None:
    with pytest.raises(ValueError, match="consistency compares rollouts with real clips, and judges none"):
        resolved(active("consistency", paired=lambda section: True))


def test_what_a_term_reads_another_must_have_left_by_then() -> None:
    matching, relation = active("distribution_matching"), active("relation")
    assert [each.name for each in resolved(matching, relation).terms] == ["distribution_matching", "relation"]
    with pytest.raises(ValueError, match="relation reads x0_fake, which no term with a weight leaves"):
        resolved(active("temporal"), relation)
    with pytest.raises(ValueError, match="x0_fake, which distribution_matching, as it is set, does not leave"):
        Method.of(load_recipe("codmd", ["objective.distribution_matching.real=0.5"]))
    elsewhere = active("distribution_matching", source=lambda section: DataSource(AtStages("x")))
    with pytest.raises(ValueError, match="relation reads x0_fake, which no term with a weight leaves"):
        resolved(elsewhere, relation)
    late = replace(matching, section=matching.section.model_copy(update={"start": 3}))
    with pytest.raises(ValueError, match=r"relation acts in updates in which distribution_matching, .*, does not"):
        resolved(active("temporal"), late, relation)
    seldom = active("distribution_matching", every=lambda section: 2)
    with pytest.raises(ValueError, match=r"relation acts in updates in which distribution_matching, .*, does not"):
        resolved(active("temporal"), seldom, relation)


def test_terms_that_read_come_after_those_that_do_not() -> None:
    order = [name for name, term in terms().items() if isinstance(term.source(term.section()), RolloutSource)]
    assert order.index("relation") > max(order.index(name) for name in order if not terms()[name].reads)


def test_an_auxiliary_may_not_take_a_roles_name() -> None:
    with pytest.raises(ValueError, match="an auxiliary is called average"):
        resolved(active("consistency", auxiliaries=lambda section: (Averaged("average", 0.9),)))


def test_an_auxiliary_that_learns_needs_a_section() -> None:
    nameless = active("distribution_matching", auxiliaries=lambda section: (Learned("critic", None),))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="critic learns, and recipes have no section"):
        resolved(nameless)


HALF, TAUGHT_ELSEWHERE = "rollout.half_rate_stages=2", "objective.regression.weight=1"


@pytest.mark.parametrize(
    ("recipe", "changes", "fault"),
    [
        ("lcm", [HALF], "timestep 1000 at half rate or resolution"),
        ("scm", ["rollout.half_resolution_stages=1"], "timestep 1000 at half rate or resolution"),
        ("dp-dmd", [HALF], "timestep 1000 at half rate or resolution"),  # its first stage learns at full rate only
        ("dp-dmd", ["objective.anchor.weight=0"], "timestep 1000: set rollout.first_exit to 0"),
        ("dp-dmd", ["rollout.first_exit=2"], "timestep 900: set rollout.first_exit to 0"),
    ],
)
def test_a_stage_that_no_term_trains_is_refused(recipe: str, changes: list[str], fault: str) -> None:
    with pytest.raises(UserError, match=f"no term of its objective trains the student at {fault}"):
        load_recipe(recipe, changes)
    load_recipe(recipe, [*changes, TAUGHT_ELSEWHERE])


def test_the_anchor_needs_a_stage_at_pure_noise() -> None:
    with pytest.raises(UserError, match=r"objective.anchor: it teaches the student at timestep 1000"):
        load_recipe("dp-dmd", ["rollout.timesteps=[937, 900]"])


# -- terms that start later ---------------------------------------------------------------------------------------

LATE = ("objective.consistency.weight=1", "objective.distribution_matching.start=10", "objective.temporal.weight=0")


def test_before_a_term_starts_the_method_is_that_of_the_others() -> None:
    late, without = (Method.of(load_recipe("avd", [*LATE, each])) for each in LATER)
    early, full = late.at(9), late.at(10)
    assert [each.name for each in early.terms] == ["regression", "consistency"]
    assert [each.name for each in early.auxiliaries] == ["target"] and not early.updates and not early.rollouts
    assert early.passes() == without.passes()
    assert full is late and [each.name for each in full.learned] == ["fake_score"]


LATER = ("objective.distribution_matching.weight=1", "objective.distribution_matching.weight=0")


def test_updates_before_a_start_are_cheaper_and_counted_so() -> None:
    method = Method.of(load_recipe("avd", LATE))
    early, full = method.at(0).forwards(4), method.forwards(4)
    assert early < full
    assert method.updates_for(early * 7, 4) == 7
    assert method.updates_for(early * 10 + full * 5, 4) == 15
    assert method.updates_for(0.0, 4) == 1
    assert [method.forwards_of(updates, 4) for updates in (7, 15)] == pytest.approx([early * 7, early * 10 + full * 5])
    plain = Method.of(load_recipe("avd"))
    assert plain.updates_for(3825, 4) == 150


# -- terms that act in every so many updates ----------------------------------------------------------------------

SELDOM = "objective.regression.every=3"


def test_in_the_other_updates_the_method_is_that_of_the_other_terms() -> None:
    seldom, without = (Method.of(load_recipe("avd", [each])) for each in (SELDOM, "objective.regression.weight=0"))
    assert [seldom.at(update) is seldom for update in range(7)] == [True, False, False, True, False, False, True]
    assert seldom.at(1).passes() == seldom.at(2).passes() == without.passes()


def test_a_third_of_the_cycles_cost_a_third_on_average() -> None:
    plain, seldom = Method.of(load_recipe("avd")), Method.of(load_recipe("avd", [SELDOM]))
    mean = sum(seldom.at(update).forwards(4) for update in (1, 2)) / 3 + plain.forwards(4) / 3
    assert seldom.forwards(4) == pytest.approx(mean) == pytest.approx(plain.forwards(4) - 2)
    assert seldom.passes() == plain.passes()  # of a cycle with all terms
    assert sum(each.count for each in seldom.mean_passes()) == pytest.approx(
        sum(each.count for each in plain.passes()) - 2 / 3
    )
    assert seldom.updates_for(seldom.forwards(4) * 60, 4) == 60
    assert plain.mean_passes() == plain.passes()


def test_cheap_cycles_take_at_most_thirteen_forwards() -> None:
    for name in ("avd-lean", "avd-lean-wan2.1-1.3b"):
        assert Method.of(load_recipe(name)).forwards(4) == 12.0


def test_a_run_learns_in_every_update() -> None:
    alone = [SELDOM, "objective.distribution_matching.weight=0", "objective.temporal.weight=0"]
    with pytest.raises(ValueError, match="no term acts in every update"):
        Method.of(load_recipe("avd", alone))


def test_an_auxiliary_that_learns_needs_a_rollout_when_its_term_starts() -> None:
    late = ActiveTerm(terms()["temporal"], terms()["temporal"].section(weight=1.0, start=5))
    early = active("distribution_matching", source=lambda section: DataSource(AtStages("x")))
    with pytest.raises(ValueError, match="fake_score learns on rollouts, and no term judges one at update 0"):
        resolved(early, late)
