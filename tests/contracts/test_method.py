"""What every recipe's method promises, checked of each that ships for the miniature, and of a one-file term."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from avd.config import load_recipe, shipped_recipes
from avd.distillation.task import DistillTask
from avd.engine.loop import UpdateResult
from avd.engine.saving import Saver
from avd.methods.method import Method
from avd.models.backbone import Backbone
from avd.objectives.registry import terms
from helpers.cycles import BATCH, Cycle, make_batch, make_cycle, networks, random_for_all
from helpers.distill_run import distill
from helpers.tiny import tiny_data, tiny_interpolator, tiny_model

RECIPES = sorted(name for name in shipped_recipes() if load_recipe(name).model == "wan-mini")
WAYS = {
    "full": (),
    "adapters": ("roles=adapters", "adapters.rank=4"),
    "in parts": ("compute.microbatch=2",),
}

each_recipe = pytest.mark.parametrize("recipe", RECIPES)


def values(network: Any) -> list[Tensor]:
    return [p.detach().clone() for p in network.parameters()]


def copies(cycle: Cycle) -> dict[str, list[Tensor]]:
    return {name: values(network) for name, network in networks(cycle).items()}


def moved(cycle: Cycle, before: dict[str, list[Tensor]]) -> set[str]:
    after = copies(cycle)
    return {
        name for name in before if any(not torch.equal(a, b) for a, b in zip(before[name], after[name], strict=True))
    }


# -- who learns ---------------------------------------------------------------------------------------------------


@each_recipe
@pytest.mark.parametrize("way", ["full", "adapters"])
def test_gradient_reaches_exactly_the_roles_that_a_method_declares(
    recipe: str, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cycle = make_cycle(*WAYS[way], recipe=recipe)
    method, roles = cycle.step.method, cycle.roles
    frozen = {"teacher", "high_expert"} if method.stages_before else {"teacher"}
    assert set(networks(cycle)) == {*frozen, "student", "average", *(each.name for each in method.auxiliaries)}
    graded: Counter[str] = Counter()
    for name, role in roles.trained.items():
        step = role.step

        def counted(name: str = name, step: Any = step) -> float:
            graded[name] += 1
            with_gradient = {
                other
                for other, network in networks(cycle).items()
                if any(p.grad is not None for p in network.parameters())
            } - ({"teacher"} if way == "adapters" else set())  # whose parameters then are nobody's
            assert with_gradient == {name}
            return step()

        monkeypatch.setattr(role, "step", counted)
    before = copies(cycle)
    cycle.run(make_batch(cycle.recipe), random_for_all(cycle, 0))
    learned = {name: each.updates for name, each in method.updates.items()}
    assert graded == {"student": 1, **learned}
    assert moved(cycle, before) - {"teacher"} == {"student", "average", *(each.name for each in method.auxiliaries)}
    if way == "full":
        assert not moved(cycle, before) & frozen


@each_recipe
def test_a_checkpoint_holds_what_a_method_declares_and_nothing_else(recipe: str) -> None:
    cycle = make_cycle(recipe=recipe)
    method = cycle.step.method
    held = {name.partition(".")[0] for name in cycle.roles.tensors()}
    learned = ["student", *method.updates]
    cycle.run(make_batch(cycle.recipe), random_for_all(cycle, 0))
    held = {name.partition(".")[0] for name in cycle.roles.tensors()}
    assert held == {*learned, *(f"{name}_optimizer" for name in learned), "average", *(e.name for e in method.averaged)}


def test_lcm_has_no_fake_score_and_no_rollout_and_keeps_its_target() -> None:
    method = Method.of(load_recipe("lcm"))
    assert (method.rollouts, method.learned, [each.name for each in method.averaged]) == (0, (), ["target"])
    cycle = make_cycle(recipe="lcm")
    metrics = cycle.run(make_batch(cycle.recipe), random_for_all(cycle, 0))
    assert not any("fake_score" in name or "exit" in name for name in metrics)
    assert any(name.startswith("target.") for name in cycle.roles.tensors())


# -- what it costs ------------------------------------------------------------------------------------------------


def count_forwards(cycle: Cycle, exit_stage: int) -> Counter[str]:
    """Forwards of each real network, in full batches and counted by blocks; a backward that passes a block counts as
    much again, and once more where it gives its weights their gradient."""
    cost: Counter[str] = Counter()
    handles = []
    for name, network in networks(cycle).items():
        if isinstance(network, Backbone):
            for block in network.blocks:
                handles += _count_block(block, name, 1 / (BATCH * len(network.blocks)), cost)
    cycle.run(make_batch(cycle.recipe), random_for_all(cycle, exit_stage))
    for handle in handles:
        handle.remove()
    return cost


def _count_block(block: nn.Module, name: str, unit: float, cost: Counter[str]) -> list[RemovableHandle]:
    """Hooks that count the block's passes, `unit` for each clip, in `cost` of the network `name`."""
    passing = 0.0

    def count(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        units = len(args[0]) * unit

        def passes(gradient: Tensor) -> None:
            nonlocal passing
            passing = units
            cost[name] += units  # type: ignore[assignment]

        cost[name] += units  # type: ignore[assignment]
        if output.requires_grad:
            output.register_hook(passes)

    def reaches_weights(gradient: Tensor) -> None:
        cost[name] += passing  # type: ignore[assignment]

    weights = [p for p in block.parameters() if p.requires_grad]
    return [block.register_forward_hook(count), *(p.register_hook(reaches_weights) for p in weights[:1])]


@each_recipe
@pytest.mark.parametrize("way", ["full", "in parts"])
def test_declared_passes_are_those_of_a_real_step(recipe: str, way: str) -> None:
    cycle = make_cycle(*WAYS[way], recipe=recipe)
    for exit_stage in (cycle.step.method.exits.first, len(cycle.rollout.trained) // 2):
        declared: Counter[str] = Counter()
        for each in cycle.step.method.passes(in_parts=way == "in parts"):
            declared[each.network] += each.forwards(exit_stage)  # type: ignore[assignment]
        assert count_forwards(cycle, exit_stage) == pytest.approx(declared)


@each_recipe
def test_a_batch_in_parts_measures_what_the_full_one_does(recipe: str) -> None:
    full, parts = make_cycle(recipe=recipe), make_cycle(*WAYS["in parts"], recipe=recipe)
    batch = make_batch(full.recipe)
    expected = full.run(batch, random_for_all(full, 1))
    assert parts.run(batch, random_for_all(parts, 1)) == pytest.approx(expected, rel=1e-4)


# -- resume -------------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """Nothing catches it, like a kill -9."""


def small_run(path: Path, recipe: str, *, resume: bool = False) -> None:
    changes = ["training.batch=2", "training.checkpoint_every=1", "training.sample_every=0", "monitors.every=0"]
    late = [each.name for each in load_recipe(recipe).objective.active if each.section.start]
    resolved = load_recipe(recipe, [*changes, *(f"objective.{name}.start=1" for name in late)])
    model = tiny_model()
    interpolator = tiny_interpolator() if resolved.rollout.half_rate_stages else None
    distill(
        path,
        3,
        resume=resume,
        task=DistillTask(resolved, model, tiny_data(model), interpolator),
    )


def outcome(path: Path) -> dict[str, bytes]:
    files = [*path.glob("student/**/*.safetensors"), *path.glob("checkpoints/*/*.safetensors")]
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


@each_recipe
def test_killed_and_resumed_gives_the_same_bytes(
    recipe: str, tmp_path: Path, one_thread: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_run(tmp_path / "straight", recipe)
    update, save = DistillTask.update, Saver.save

    def dies(self: DistillTask, n: int, *between: Any) -> UpdateResult:
        if n == 2:
            raise Killed
        return update(self, n, *between)

    def written(self: Saver, *arguments: Any) -> None:  # a process of its own would leave none half written
        save(self, *arguments)
        self.finish()

    with monkeypatch.context() as patch:
        patch.setattr(DistillTask, "update", dies)
        patch.setattr(Saver, "save", written)
        with pytest.raises(Killed):
            small_run(tmp_path / "killed", recipe)
    small_run(tmp_path / "killed", recipe, resume=True)
    straight = outcome(tmp_path / "straight")
    assert straight and outcome(tmp_path / "killed") == straight


# -- what a term declares -----------------------------------------------------------------------------------------


def test_every_term_says_what_it_is() -> None:
    for name, term in terms().items():
        assert term.name == name and term.about and term.paper and not term.about.endswith(".")


PAGE = Path(__file__).parents[2] / "docs" / "adding-a-method.md"
FAST = """\
model: tiny
data: {world_clips: 4}
training: {updates: 1, batch: 2, sample_every: 0}
monitors: {every: 0}
"""


def block(language: str) -> str:
    """The first block of code in a language on the page."""
    return PAGE.read_text(encoding="utf-8").partition(f"```{language}\n")[2].partition("```")[0]


def test_a_term_is_one_file_and_a_recipe(tmp_path: Path) -> None:
    """The page's example: distilled, planned and listed by the command line, and nothing else is touched."""
    (tmp_path / "terms").mkdir()
    (tmp_path / "terms" / "dark.py").write_text(block("python"))
    (tmp_path / "dark.yaml").write_text(block("yaml") + FAST)
    tiny_model().save(tmp_path / "tiny")
    code = (
        "import sys, avd.objectives; avd.objectives.__path__.append('terms'); "
        "from avd.cli.main import main; sys.argv[0] = 'avd'; main()"
    )

    def avd(*arguments: str) -> str:
        command = [sys.executable, "-c", code, *arguments]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return done.stdout

    avd("distill", "dark.yaml", "--output", "run")
    assert '"dark"' in (tmp_path / "run" / "metrics.jsonl").read_text()
    assert "fake_score" not in (tmp_path / "run" / "metrics.jsonl").read_text()
    assert "floor: -1.0" in (tmp_path / "run" / "recipe.yaml").read_text()
    assert "student at the exit" in avd("plan", "dark.yaml")
    assert "square of the student's samples" in avd("methods")
