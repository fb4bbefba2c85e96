"""Plans of ablations: what is refused, and that the shipped one's recipes and knobs exist."""

from __future__ import annotations

from pathlib import Path

import pytest

from avd.config import AblationRecipe, load, load_recipe
from avd.config.ablation import CurveRecipe
from avd.methods.method import Method
from avd.types import UserError

TEACHER = "{name: t, recipe: dmd, sampler: many}"
DMD = "{name: dmd, recipe: dmd, knob: {key: seed, values: [1, 2]}}"


CURVE = "curves: [{name: k, recipe: avd, key: objective.regression.k, values: [1, 3]}]\n"


def complaint(folder: Path, *rows: str, more: str = "") -> str:
    path = folder / "plan.yaml"
    path.write_text("kind: ablation\n" + more + CURVE + "rows:\n" + "".join(f"- {row}\n" for row in rows))
    with pytest.raises(UserError) as error:
        load(AblationRecipe, str(path))
    return str(error.value)


@pytest.mark.parametrize(
    ("rows", "fault"),
    [
        ([DMD, "{name: k 1, recipe: avd}"], "curve k 1 has the name of a row or of another curve"),
        ([DMD, DMD], "two rows are called dmd"),
        (["{name: half, run: dmd}", DMD], "row half needs dmd, which is no row before it"),
        ([TEACHER, "{name: half, run: t}"], "row half needs t, which is no row before it with runs of its own"),
        ([DMD, "{name: dfd, recipe: dmd, starts: {student.start: dmb}}"], "row dfd needs dmb"),
        (["{name: nothing}"], "needs one of recipe"),
        ([DMD, "{name: half, run: dmd, updates: 5}"], "so it has nothing to train"),
        (["{name: t, recipe: dmd, sampler: cut, knob: {key: seed, values: [1, 2]}}"], "which is not trained"),
        (["{name: a/b, recipe: dmd}"], "it names folders"),
        (["{name: a, recipe: dmd, knob: {key: seed, values: [1, 2, 1.0]}}"], "1.0 stands there twice"),
        (
            [DMD, "{name: b, recipe: dmd, share: 0.2, starts: {a: dmd, b: dmd}}"],
            "b and what it starts from have shares of 1.2",
        ),
        ([DMD, "{name: b, recipe: dmd, knob: {key: seed, values: [1, 2, 3]}}"], "dmd has 2 trials and b 3"),
        (["{name: a, recipe: dmd, knbo: 1}"], "unknown key rows.0.knbo (did you mean knob?)"),
        (
            ["{name: a, recipe: dmd, knob: {key: a, values: [1, 2], kye: 1}}"],
            "unknown key rows.0.knob.kye (did you mean key?)",
        ),
    ],
)
def test_mistakes_are_a_line(rows: list[str], fault: str, tmp_path: Path) -> None:
    assert fault in complaint(tmp_path, *rows)


def test_tuning_seeds_and_orderings_are_checked(tmp_path: Path) -> None:
    assert "none of the 3 that judge" in complaint(tmp_path, DMD, more="tuning: {seeds: [2]}\n")
    assert "comparisons name avd" in complaint(tmp_path, DMD, more="comparisons: [[dmd, avd]]\n")
    assert "orderings name dmd" in complaint(tmp_path, DMD, more="orderings: [[dmd, dmd]]\n")


def test_curves_need_names_of_their_own_and_a_plan_something_to_do(tmp_path: Path) -> None:
    two = CURVE.replace("]\n", ", {name: k, recipe: dmd, key: seed, values: [1, 3]}]\n")
    path = tmp_path / "plan.yaml"
    for text, fault in ((two, "curve k has the name of a row or of another curve"), ("", "neither rows nor curves")):
        path.write_text("kind: ablation\n" + text)
        with pytest.raises(UserError, match=fault):
            load(AblationRecipe, str(path))


def test_a_curve_is_a_row_per_value() -> None:
    values = {"name": "k", "recipe": "avd", "key": "objective.regression.k", "values": (1.0, 3.0)}
    points = CurveRecipe.model_validate(values).points
    assert [row.changes for row in points.values()] == [(f"objective.regression.k={k}",) for k in (1.0, 3.0)]
    shares = CurveRecipe.model_validate(values | {"key": "share", "values": (0.25, 1.0)}).points
    assert {value: (row.share, row.changes) for value, row in shares.items()} == {"0.25": (0.25, ()), "1.0": (1.0, ())}


@pytest.mark.parametrize("name", ["ablation", "beyond-the-paper"])
def test_every_shipped_row_has_a_recipe_that_takes_its_knob_and_begins_with_its_value(name: str) -> None:
    plan = load(AblationRecipe, name)
    for row in plan.rows:
        if row.recipe is not None:
            recipe = load_recipe(row.recipe, row.changes)
            Method.of(recipe)
            for value in () if row.knob is None else row.knob.values:
                load_recipe(row.recipe, [*row.changes, f"{row.knob.key}={value}"])
            if row.knob is not None:
                assert load_recipe(row.recipe, [*row.changes, f"{row.knob.key}={row.knob.values[0]}"]) == recipe
    for curve in plan.curves:
        assert all(load_recipe(curve.recipe, row.changes) for row in curve.points.values())


def test_shipped_students_of_two_experts_have_the_budget_of_one_run() -> None:
    plan = load(AblationRecipe, "ablation")
    rows = {row.name: row for row in plan.rows}
    pairs = [(rows[row.starts["experts.high"]], row) for row in plan.rows if "experts.high" in row.starts]
    assert [low.name for _, low in pairs] == ["phased-dmd", "dcm"]
    for pair in pairs:
        high, low = (load_recipe(row.recipe or "", row.changes) for row in pair)
        assert not pair[0].shown and pair[1].shown
        assert (high.experts.train, low.experts.train) == ("high", "low")
        assert (high.rollout.timesteps, high.experts.high_stages) == (low.rollout.timesteps, low.experts.high_stages)
        spent = 0.0
        for row, recipe in zip(pair, (high, low), strict=True):
            method, stages = Method.of(recipe), len(recipe.trained_stages)
            updates = method.updates_for(plan.forwards * row.share, stages)
            assert abs(updates - recipe.training.updates) <= max(
                1, 0.02 * updates
            )  # the recipe's own are of that budget
            spent += method.forwards_of(updates, stages)
        assert spent == pytest.approx(plan.forwards, rel=0.01)
