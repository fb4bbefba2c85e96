"""Recipes: what loads, what it resolves to, and how a mistake is reported."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from avd.config import (
    COMMANDS,
    InterpolatorRecipe,
    Recipe,
    TeacherRecipe,
    VAERecipe,
    about,
    load,
    load_recipe,
    shipped_recipes,
)
from avd.models.wan.known import KNOWN
from avd.types import UserError


def leaves(section: BaseModel, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Dotted path and value of everything in a recipe."""
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            yield from leaves(value, (*path, name))
        else:
            yield ".".join((*path, name)), value


LEAVES = dict(leaves(load_recipe("avd")))
SECTIONS = sorted({path.rpartition(".")[0] for path in LEAVES} | {"objective"})
AVD_VALUES = yaml.safe_load(load_recipe("avd").to_yaml())


def write(folder: Path, text: str, name: str = "mine.yaml") -> str:
    path = folder / name
    path.write_text(text)
    return str(path)


def complaint(name: str, *overrides: str) -> str:
    """What the user reads: always one line."""
    with pytest.raises(UserError) as caught:
        load_recipe(name, overrides)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    return message


@pytest.mark.parametrize("name", sorted(shipped_recipes()))
def test_a_shipped_recipe_survives_its_resolved_yaml(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert load_recipe(write(tmp_path, recipe.to_yaml())) == recipe
    assert set(yaml.safe_load(recipe.to_yaml())) == set(Recipe.model_fields)  # nothing left implicit


TRAINING = {"vae": VAERecipe, "teacher": TeacherRecipe, "interpolator": InterpolatorRecipe}


@pytest.mark.parametrize("name", TRAINING)
def test_a_recipe_of_avd_train_states_the_defaults_and_survives_its_yaml(name: str, tmp_path: Path) -> None:
    model = TRAINING[name]
    recipe = load(model, name)
    assert recipe == model() and set(shipped_recipes(model)) == {name}
    assert load(model, write(tmp_path, recipe.to_yaml())) == recipe
    keys = {field.alias or key for key, field in model.model_fields.items()}
    assert set(yaml.safe_load(recipe.to_yaml())) == keys


def test_every_shipped_recipe_says_what_it_is_in_a_sentence() -> None:
    for model in COMMANDS:
        for name, text in shipped_recipes(model).items():
            assert re.fullmatch(r"[A-Z].{10,110}[^.]\.", about(text)), name


def test_what_a_file_says_of_itself_is_not_inherited(tmp_path: Path) -> None:
    mine = write(tmp_path, 'extends: avd\nname: mine\nabout: "Mine: with more motion."\n')
    assert load_recipe(mine) == load_recipe("avd", ["name=mine"])
    assert about(Path(mine).read_text()) == "Mine: with more motion."
    assert about(Path(write(tmp_path, "extends: avd\nname: mine\n")).read_text()) == ""
    assert "about is 5" in complaint(write(tmp_path, "extends: avd\nabout: 5"))
    assert "unknown key about" in complaint("avd", "about=Mine")


def test_a_file_takes_its_kind_from_the_recipe_it_extends(tmp_path: Path) -> None:
    mine = write(tmp_path, "extends: vae\nbatch: 8\n")
    assert load(VAERecipe, mine, ["ema=0.5"]) == VAERecipe(batch=8, ema=0.5)
    assert f"recipe {mine} is for `avd train vae` (its kind is vae), not for `avd distill`" in complaint(mine)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("updates: 5", "is for `avd distill` (it states no kind), not for `avd train teacher`: write kind: teacher"),
        ("extends: avd", "is for `avd distill`"),
        ("extends: vae", "is for `avd train vae` (its kind is vae)"),
        ("kind: studnet", "is of kind studnet: known are vae, teacher, interpolator"),
        ("extends: teacher\nclip: 5", "unknown key clip (did you mean clips?)"),
        ("extends: teacher\ncooldown: 2", "cooldown is 2: input should be less than or equal to 1"),
        ("extends: teacher\nbatch: 1000000000000000000000", "batch is 1000000000000000000000"),
    ],
)
def test_a_mistake_in_a_recipe_of_avd_train_is_one_line(text: str, part: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        load(TeacherRecipe, write(tmp_path, text))
    assert part in str(caught.value) and len(str(caught.value).splitlines()) == 1


def test_an_option_wins_over_an_override_and_is_never_read_as_yaml() -> None:
    options = {"vae": "12: [", "updates": 7, "from": None, "seed": 0}
    recipe = load(TeacherRecipe, "teacher", ["vae=other", "updates=5", "from=wan-mini", "seed=4"], options)
    assert (recipe.vae, recipe.updates, recipe.start, recipe.seed) == ("12: [", 7, "wan-mini", 0)


def test_the_ablation_rows_differ_from_the_method_in_what_they_ablate() -> None:
    avd = LEAVES | {"name": None}

    def changes(name: str) -> dict[str, Any]:
        return {k: v for k, v in leaves(load_recipe(name)) if k != "name" and avd[k] != v}

    regression, temporal = "objective.regression.weight", "objective.temporal.weight"
    assert changes("dmd") == {regression: 0.0, temporal: 0.0}
    assert changes("dmd-temporal") == {regression: 0.0}
    assert changes("plain-regression") == {"objective.regression.adaptive": False}
    assert changes("avd-half-rate") == {"rollout.half_rate_stages": 2, "rollout.half_rate_share": 0.5}


def test_defaults_are_the_papers() -> None:
    recipe = Recipe(name="paper")
    assert recipe.rollout.timesteps == (1000, 900, 757, 522)
    assert recipe.objective.distribution_matching.standard_guidance == 5.0
    assert (recipe.objective.regression.weight, recipe.objective.temporal.weight) == (2.0, 0.05)
    assert (recipe.objective.regression.omega, recipe.objective.regression.k) == (0.95, 3.0)
    assert recipe.objective.temporal.truncation == 0.6
    assert recipe.student.optimizer == recipe.fake_score.optimizer
    assert (recipe.student.optimizer.learning_rate, recipe.student.optimizer.betas) == (2e-6, (0.9, 0.999))
    assert recipe.fake_score.updates == 5


def test_the_recipes_for_wan_have_the_papers_settings() -> None:
    paper, recipe = Recipe(name="paper"), load_recipe("avd-wan2.1-1.3b")
    objective = recipe.objective
    assert not recipe.rollout.shared and objective.distribution_matching.shift == 5.0  # of the released code
    uniform = objective.distribution_matching.model_copy(update={"shift": 1.0})
    assert recipe.rollout.model_copy(update={"shared": True}) == paper.rollout
    assert objective.model_copy(update={"distribution_matching": uniform}) == paper.objective
    assert (recipe.student, recipe.fake_score) == (paper.student, paper.fake_score)

    def changes(name: str, base: str) -> dict[str, Any]:
        before = dict(leaves(load_recipe(base)))
        return {k: v for k, v in leaves(load_recipe(name)) if k != "name" and before[k] != v}

    alone = {"objective.regression.weight": 0.0, "objective.temporal.weight": 0.0}
    larger = {"model": "Wan-AI/Wan2.1-T2V-14B-Diffusers", "roles": "adapters"}
    larger |= {f"{role}.optimizer.learning_rate": 2e-5 for role in ("student", "fake_score")}
    larger |= {f"{role}.optimizer.weight_decay": 0.0 for role in ("student", "fake_score")}
    assert changes("avd-wan2.1-14b", "avd-wan2.1-1.3b") == larger
    assert changes("dmd-wan2.1-1.3b", "avd-wan2.1-1.3b") == alone
    assert changes("dmd-wan2.1-14b", "avd-wan2.1-14b") == alone
    assert changes("released-code-wan2.1-1.3b", "avd-wan2.1-1.3b") == {
        "objective.distribution_matching.guidance_form": "conditional",
        "objective.regression.weight": 1.0,
        "objective.regression.order": "update_first",
        "objective.temporal.truncation": 0.8,
        "compute.microbatch": None,
    }


def test_the_recipes_for_wan_name_known_models() -> None:
    known = {model.hub_id for model in KNOWN.values()}
    assert {load_recipe(name).model for name in shipped_recipes() if "wan2.1" in name} < known


def test_the_released_codes_guidance_of_5_is_6_in_the_usual_convention() -> None:
    recipe = load_recipe("avd", ["objective.distribution_matching.guidance_form=conditional"])
    assert recipe.objective.distribution_matching.standard_guidance == 6.0


@pytest.mark.parametrize(("recipe", "other", "own"), [("pcm", "renoise", "euler"), ("lcm", "euler", "renoise")])
def test_a_student_that_would_be_sampled_by_the_other_transition_is_refused(recipe: str, other: str, own: str) -> None:
    with pytest.raises(UserError, match=f"is sampled in another way: set rollout.transition={own}"):
        load_recipe(recipe, [f"rollout.transition={other}"])


def test_a_term_acts_from_the_first_update() -> None:
    with pytest.raises(UserError, match="every term of its objective has a start above 0: set one of them to 0"):
        load_recipe("dmd", ["objective.distribution_matching.start=1"])


def test_extends_merges_section_by_section(tmp_path: Path) -> None:
    base = write(
        tmp_path, "extends: dmd\nname: base\nobjective: {temporal: {weight: 0.1}}\nrollout: {timesteps: [900, 500]}"
    )
    recipe = load_recipe(write(tmp_path, f"extends: {base}\nname: top\ntraining: {{batch: 3}}", "top.yaml"))
    changes = ["name=top", "objective.temporal.weight=0.1", "rollout.timesteps=[900, 500]", "training.batch=3"]
    assert recipe == load_recipe("dmd", changes)


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("student.optimizer.learning_rate=2e-6", 2e-6),  # YAML 1.1 alone would read a word
        ("student.optimizer.learning_rate=1", 1.0),
        ("student.optimizer.betas=[0, 0.99]", (0.0, 0.99)),
        ("rollout.timesteps=[1000, 500.5]", (1000.0, 500.5)),
        ("rollout.shared=false", False),
        ("rollout.shared=no", False),
        ("objective.temporal.truncation=never", "never"),
        ("objective.temporal.truncation=6e-1", 0.6),
        ("objective.temporal.truncation=-2", -2.0),
        ("training.checkpoint_every=1", 1),
        (" training.batch = 7 ", 7),
        ("model=Wan-AI/Wan2.1-T2V-1.3B-Diffusers", "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"),
        ("name=a=b", "a=b"),
    ],
)
def test_an_override_is_read_as_its_keys_type(override: str, value: Any) -> None:
    path = override.partition("=")[0].strip()
    found = dict(leaves(load_recipe("avd", [override])))
    assert found[path] == value and type(found[path]) is type(value)
    assert {k: v for k, v in found.items() if k != path} == {k: v for k, v in LEAVES.items() if k != path}


def test_a_later_override_wins_and_a_section_can_be_given_full() -> None:
    recipe = load_recipe("avd", ["training.batch=2", "training.batch=3", "objective.temporal={weight: 0.2}"])
    assert recipe.training.batch == 3
    assert recipe.objective.temporal.weight == 0.2 and recipe.objective.temporal.truncation == 0.6


@given(st.sampled_from(sorted(LEAVES)))
def test_every_value_can_be_overridden_with_itself(path: str) -> None:
    value = AVD_VALUES
    for part in path.split("."):
        value = value[part]
    text = yaml.safe_dump(value, default_flow_style=True).removesuffix("...\n")
    assert load_recipe("avd", [f"{path}={text}"]) == load_recipe("avd")


@given(st.sampled_from(SECTIONS), st.text(st.characters(codec="utf-8", exclude_characters="=."), max_size=12))
def test_any_unknown_key_is_one_line_that_names_a_known_one(section: str, key: str) -> None:
    known = [path.removeprefix(section).lstrip(".").split(".")[0] for path in LEAVES if path.startswith(section)]
    if key.strip() in known:
        return
    message = complaint("avd", f"{section}.{key}".lstrip(".") + "=1")
    assert "unknown key" in message and any(name in message.partition("unknown key")[2] for name in known)


@given(st.text(max_size=30))
def test_no_override_breaks_out(text: str) -> None:
    try:
        recipe = load_recipe("avd", [text])
    except UserError as error:
        assert len(str(error).splitlines()) == 1
    else:
        assert recipe != load_recipe("avd")


@pytest.mark.parametrize(
    ("override", "hint"),
    [
        ("trainig.batch=1", "unknown key trainig (did you mean training?)"),
        ("objective.temporl.weight=1", "unknown key objective.temporl (did you mean temporal?)"),
        ("objective.temporal.wieght=1", "unknown key objective.temporal.wieght (did you mean weight?)"),
        ("student.optimizer.lerning_rate=1", "(did you mean learning_rate?)"),
        (
            "rollout.zzz=1",
            "unknown key rollout.zzz: known are timesteps, half_rate_stages, half_resolution_stages, half_rate_share, "
            "shared",
        ),
    ],
)
def test_an_unknown_key_names_the_nearest(override: str, hint: str, tmp_path: Path) -> None:
    assert hint in complaint("avd", override)
    values: Any = {"name": "mine"}
    path, value = override.split("=")
    inner = values
    for part in path.split(".")[:-1]:
        inner = inner.setdefault(part, {})
    inner[path.split(".")[-1]] = int(value)
    assert hint in complaint(write(tmp_path, yaml.safe_dump(values)))


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("training.batch=0", ["training.batch is 0", "greater than or equal to 1"]),
        ("training.batch=null", ["training.batch is None"]),
        ("training.batch=many", ["training.batch is 'many'"]),
        ("training.batch=2.5", ["training.batch is 2.5"]),
        ("seed=-1", ["seed is -1"]),
        ("student.ema=1", ["student.ema is 1", "less than 1"]),
        ("student.optimizer.learning_rate=0", ["student.optimizer.learning_rate is 0"]),
        ("student.optimizer.learning_rate=.nan", ["student.optimizer.learning_rate is nan"]),
        ("student.optimizer.betas=[0.9, 1.5]", ["student.optimizer.betas.1 is 1.5", "less than 1"]),
        ("objective.temporal.weight=.inf", ["objective.temporal.weight is inf", "finite"]),
        ("objective.temporal.truncation=often", ["truncation is 'often'", "a number", '"data"', '"never"']),
        ("objective.temporal.truncation=.nan", ["objective.temporal.truncation is nan"]),
        ("objective.regression.order=last", ["is 'last'", "'weight_first' or 'update_first'"]),
        ("objective.distribution_matching.sigma_min=0.99", ["sigma_min", "0.99", "0.98"]),
        ("rollout.timesteps=[500, 1000]", ["500.0, 1000.0", "must fall"]),
        ("rollout.timesteps=[]", ["timesteps", "[]"]),
        ("rollout.transition=heun", ["'heun'", "renoise"]),
        ("rollout.half_rate_stages=4", ["'half_rate_stages': 4", "below the number of timesteps (4)"]),
        ("rollout.half_resolution_stages=4", ["half_resolution_stages must be below the number of timesteps (4)"]),
        (
            "rollout={half_rate_stages: 1, half_resolution_stages: 2}",
            ["half_resolution_stages (2) are more than half_rate_stages (1)", "set as many or fewer"],
        ),
        ("objective=5", ["objective is 5"]),
        ("objective.temporal=", ["objective.temporal is None"]),
        ("training.batch.size=5", ["training.batch.size", "batch is a value, not a section"]),
        ("training.batch", ["'training.batch'", "KEY=VALUE"]),
        ("rollout.timesteps=[1000", ["rollout.timesteps=[1000", "not YAML"]),
    ],
)
def test_a_bad_value_is_reported_with_what_was_found(override: str, parts: list[str]) -> None:
    message = complaint("avd", override)
    assert all(part in message for part in parts), message


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "holds no keys"),
        ("- dmd", "holds no keys"),
        ("a: [", "not YAML"),
        ("a: !!python/object:os.system {}", "not YAML"),
        ("seed: 1", "name is missing"),
        ("name: mine\n5: 1", "keys should be strings"),
        ("extends: 5", "extends 5"),
        ("extends: [avd, dmd]", "extends ['avd', 'dmd']"),
        ("extends: avdd", "avdd (did you mean avd?)"),
    ],
)
def test_a_bad_file_is_reported_by_its_name(text: str, part: str, tmp_path: Path) -> None:
    assert part in complaint(write(tmp_path, text))


def test_a_recipe_that_cannot_be_read(tmp_path: Path) -> None:
    missing = complaint("dmd-temporl")
    assert "did you mean dmd-temporal?" in missing and "shipped are ablation, avd, " in missing
    assert "cannot be read" in complaint(str(tmp_path))
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\xff")
    assert "cannot be read" in complaint(str(tmp_path / "binary.yaml"))


def test_a_base_is_a_shipped_recipe_or_a_file_beside_the_one_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "lab").mkdir()
    write(tmp_path / "lab", "extends: avd\nname: base\nseed: 7", "base.yaml")
    write(tmp_path, "name: not this one", "avd")  # a shipped name means the shipped recipe
    assert load_recipe(write(tmp_path / "lab", "extends: base.yaml\nname: mine")).seed == 7
    above = load_recipe(write(tmp_path, "extends: lab/mine.yaml", "above.yaml"))
    assert (above.name, above.seed, above.training.batch) == ("mine", 7, 16)


def test_recipes_that_extend_each_other_are_a_circle(tmp_path: Path) -> None:
    own = write(tmp_path, f"extends: {tmp_path / 'own.yaml'}", "own.yaml")
    assert f"{own} -> {own}" in complaint(own)
    first = write(tmp_path, f"extends: {tmp_path / 'second.yaml'}", "first.yaml")
    second = write(tmp_path, f"extends: {first}", "second.yaml")
    assert f"{first} -> {second} -> {first}" in complaint(first)
    up = write(tmp_path, f"extends: ../{tmp_path.name}/up.yaml", "up.yaml")
    assert f"{up} -> {up}" in complaint(up)
