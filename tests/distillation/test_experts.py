"""Two experts, trained by two runs: what each learns on, what is written, and what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from avd.config import load_recipe
from avd.distillation.model_record import record_model
from avd.distillation.preflight import preflight
from avd.distillation.saved_student import SETTINGS_OF_RUN, open_saved_student, saved_streams
from avd.distillation.starts import resolve_starts
from avd.distillation.task import DistillTask
from avd.engine.checkpoint import SavedTensors, list_checkpoints
from avd.engine.run_folder import RECIPE_FILE
from avd.methods.method import Method
from avd.models.devices import read_launch
from avd.models.experts import HIGH, LOW
from avd.models.family import load_model
from avd.models.settings import write_settings
from avd.planning.work import work_of
from avd.sampling.choose import make_sampler
from avd.types import UserError
from helpers.distill_run import distill
from helpers.tiny import tiny_data, tiny_model

SMALL = ("training.batch=2", "training.checkpoint_every=1", "training.sample_every=0", "monitors.every=0")
ONE_PROCESS = read_launch({}, connects=True)
Runs = tuple[Path, Path, DistillTask]


def run(base: Path, path: Path, recipe: str, *changes: str) -> DistillTask:
    resolved = load_recipe(recipe, [f"model={base}", *SMALL, *changes])
    model, method = load_model(str(base)), Method.of(resolved)
    starts = resolve_starts(resolved, method, model)
    return distill(path, 1, task=DistillTask(resolved, model, tiny_data(model), None, starts=starts))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """The runs of both experts, and the task of the second."""
    folder = tmp_path_factory.mktemp("experts")
    tiny_model().save(folder / "base")
    run(folder / "base", folder / "high", "phased-dmd-high", "student.optimizer.learning_rate=0.01")
    task = run(folder / "base", folder / "low", "phased-dmd-low", f"experts.high={folder / 'high'}")
    return folder / "high", folder / "low", task


def test_the_second_run_writes_both_experts(runs: Runs) -> None:
    high, low, task = runs
    first, both = load_model(str(high / "student")).settings, load_model(str(low / "student")).settings
    assert (first.student_timesteps, first.end_timestep, first.high_stages) == ((1000, 900), 757, 0)
    assert (both.student_timesteps, both.end_timestep, both.high_stages) == ((1000, 900, 757, 522), 0, 2)
    assert first.transition == both.transition == "euler"
    written = {part: load_file(low / "student" / part / "diffusion_pytorch_model.safetensors") for part in (HIGH, LOW)}
    trained = load_file(high / "student" / HIGH / "diffusion_pytorch_model.safetensors")
    average = task.roles.average.network.transformer.state_dict()  # type: ignore[attr-defined]
    assert all(torch.equal(written[HIGH][name], tensor) for name, tensor in trained.items())
    assert all(torch.equal(written[LOW][name], tensor) for name, tensor in average.items())
    assert not torch.equal(written[HIGH]["proj_out.weight"], written[LOW]["proj_out.weight"])


def test_a_checkpoint_of_the_second_run_holds_them_too(runs: Runs) -> None:
    _, low, task = runs
    with SavedTensors(list_checkpoints(low / "checkpoints")[-1]) as tensors:
        weights, adapter = saved_streams(task.recipe, tensors, task.model, task.roles.starts.high)
        saved = dict(weights)
    student = load_model(str(low / "student")).weights()
    assert adapter is None and list(saved) == list(weights.shapes) and saved.keys() == student.shapes.keys()
    for name, tensor in saved.items():
        assert torch.equal(tensor, student.region(name, (0,) * tensor.ndim, tuple(tensor.shape)))


def test_a_run_samples_as_its_student_does(runs: Runs) -> None:
    """Previews and monitors of the second run go through both experts."""
    _, low, task = runs
    model, prompts = load_model(str(low / "student")), ["a red square rises"]
    expected = make_sampler(model)(prompts, torch.Generator().manual_seed(0))
    noise = torch.randn(1, *model.latent_shape(), generator=torch.Generator().manual_seed(0))
    found = task.sampler().student(noise, model.encode_prompts(prompts), lambda stage: noise)
    torch.testing.assert_close(found, expected)


def test_rollouts_begin_with_the_frozen_expert(runs: Runs) -> None:
    _, _, task = runs
    student = task.roles.student.network
    high = load_model(str(runs[0] / "student")).velocity()
    x, prompt = torch.randn(1, *task.model.latent_shape()), task.model.encode_prompts(["a red square rises"])
    path = task.roles.path_of(student)
    with torch.no_grad():
        for sigma, expected in ((1.0, high), (0.9, high), (0.757, student), (0.522, student)):
            level = torch.tensor([sigma])
            torch.testing.assert_close(path(x, level, prompt), expected(x, level, prompt))
    assert task.rollout.trained == range(2, 4) and all(not p.requires_grad for p in task.roles.high_expert.parameters())  # type: ignore[union-attr]


def test_what_they_cost() -> None:
    """1 + 5 updates on 2 stages, and for the second expert the two stages of the first."""
    for name, forwards in (("phased-dmd-high", 21.5), ("phased-dmd-low", 23.5)):
        recipe = load_recipe(name)
        assert Method.of(recipe).forwards(len(recipe.trained_stages)) == forwards
        work = work_of(recipe, tiny_model().sizes, {}, in_parts=False)
        assert sum(each.forwards for each in work) == forwards


def refused(base: Path, *changes: str) -> str:
    recipe = load_recipe("phased-dmd-low", [f"model={base}", *changes])
    with pytest.raises(UserError) as raised:
        resolve_starts(recipe, Method.of(recipe), load_model(str(base)))
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_another_first_expert_is_one_line(runs: Runs, tmp_path: Path) -> None:
    high, low, task = runs
    base = Path(task.recipe.model)
    assert "names none of high noise" in refused(base)
    assert "1000, 900 down to 757" in refused(base, f"experts.high={high}", "rollout.timesteps=[1000,900,800,522]")
    assert "is a student of two experts" in refused(base, f"experts.high={low}")
    tiny_model(seed=3).save(tmp_path / "other")
    assert "has another VAE" in refused(base, f"experts.high={tmp_path / 'other'}")
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished" / "recipe.yaml").write_text((high / "recipe.yaml").read_text())
    assert "has not written its student yet" in refused(base, f"experts.high={tmp_path / 'unfinished'}")


def test_a_run_is_held_to_the_first_expert_that_it_began_with(runs: Runs, tmp_path: Path) -> None:
    """Its run may continue and write another one; neither training nor an export then uses that unnoticed."""
    first, second, task = runs
    high, low = (shutil.copytree(each, tmp_path / each.name) for each in (first, second))
    recipe = load_recipe("phased-dmd-low", [f"model={task.recipe.model}", *SMALL, f"experts.high={high}"])
    (low / RECIPE_FILE).write_text(recipe.to_yaml())
    starts = preflight(recipe, low, resume=True, launch=ONE_PROCESS).starts  # no record, as of an earlier version
    record_model(low, task.model, starts.high_weights)
    write_settings(low, task.student_settings, SETTINGS_OF_RUN)
    preflight(recipe, low, resume=True, launch=ONE_PROCESS)
    with open_saved_student(low, "latest"):
        pass
    path = high / "student" / HIGH / "diffusion_pytorch_model.safetensors"
    save_file({name: tensor + 0.01 for name, tensor in load_file(path).items()}, path)
    with pytest.raises(UserError, match=r"experts.high .* has other weights than when the run .* began"):
        preflight(recipe, low, resume=True, launch=ONE_PROCESS)
    with pytest.raises(UserError, match=r"experts.high .* has other weights"), open_saved_student(low, "latest"):
        pass


@pytest.mark.parametrize(
    ("recipe", "change", "message"),
    [
        ("dmd", "experts.high_stages=2", "set experts.train"),
        ("dmd", "experts.high=runs/high", "set experts.train to low"),
        ("phased-dmd-high", "experts.high_stages=4", "experts.high_stages must be from 1 to 3"),
        ("phased-dmd-high", "rollout.transition=renoise", "set rollout.transition to euler"),
        ("phased-dmd-low", "roles=adapters adapters.merge=false", "set adapters.merge to true"),
    ],
)
def test_a_recipe_of_experts_that_cannot_be_is_one_line(recipe: str, change: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_recipe(recipe, change.split())


def test_a_term_that_judges_clean_videos_cannot_train_the_first_expert() -> None:
    for term in ("temporal", "anchor"):
        with pytest.raises(ValueError, match=f"{term} trains students of clean videos"):
            Method.of(load_recipe("phased-dmd-high", [f"objective.{term}.weight=0.2"]))
    Method.of(load_recipe("phased-dmd-low", ["objective.temporal.weight=0.2"]))
