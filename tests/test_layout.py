"""Tests lie where the code does: tests/<room>/test_<module>.py, or in a folder of its own meaning."""

from __future__ import annotations

from pathlib import Path

import pytest

import avd

TESTS = Path(__file__).parent
PACKAGE = Path(avd.__file__).parent

FREE_FOLDERS = {"contracts", "cli", "helpers"}
"""What holds for every filler of a seam; commands as a user runs them; what tests share."""

CROSS_CUTTING = {
    "test_benchmarks.py": "what a benchmark counts",
    "test_config.py": "recipes of all kinds, across config and the command line",
    "test_docs.py": "pages against the code",
    "test_docs_names.py": "names on pages against the code",
    "test_golden.py": "numbers of every miniature recipe",
    "test_imports.py": "the order of the rooms",
    "test_layout.py": "this",
    "test_numbers.py": "the count of the numbers, against the golden metrics",
    "test_same.py": "tools/same.py",
    "test_sizes.py": "sizes of files, functions, rooms",
    "test_unused.py": "callers of what is public",
    "test_words.py": "the words of code and docs",
}

TOPICS = {
    "config/test_values.py": "values of shipped recipes against the model's own",
    "data/test_earlier_versions.py": "caches of earlier versions of the format",
    "data/test_kill_preparation.py": "preparation, killed anywhere",
    "data/video/test_odd_files.py": "files as people have them",
    "data/video/test_windows.py": "clips cut from videos",
    "distillation/monitoring/test_native.py": "a run that the native suite watches",
    "distillation/test_compute.py": "the ways in which networks are computed",
    "distillation/test_experts.py": "two runs that make one student",
    "distillation/test_learnt.py": "what a run has learnt against what its student does",
    "distillation/test_ranks.py": "several processes against one",
    "distillation/test_run_folder_of_ranks.py": "a run folder that ranks see differently",
    "distillation/test_reductions.py": "methods that are others where a term has no weight",
    "distillation/test_step_gradient.py": "the student's gradient against autograd's",
    "distillation/test_step_strides.py": "distillation/step.py with stages on part of the latents",
    "experiments/ablation/test_folder.py": "an ablation that trains nothing: what is on disk",
    "measures/test_damage.py": "every measure on damaged clips",
    "measures/test_dynamic_degree_calibration.py": "dynamic degree on rendered clips",
    "evaluation/benchmarks/test_real_vbench.py": "the official package itself",
    "models/wan/test_teachers.py": "published teachers against stock diffusers",
    "report/test_pictures.py": "sheet and page",
    "sampling/test_light.py": "sampling loads no training code",
    "world/test_oracle.py": "the oracle's readings",
    "world/test_oracle_calibration.py": "the oracle on rendered clips",
    "world/test_oracle_damage.py": "the oracle on damaged clips",
    "world/test_world.py": "the world's clips",
}
"""Tests of a room that are about a subject and not about one module."""


def misplaced(test: str, modules: set[str]) -> str | None:
    """Why `test`, a path below tests/, lies wrong, given the `modules` of the package without suffix; or None."""
    path = Path(test)
    if path.parts[0] in FREE_FOLDERS or test in CROSS_CUTTING or test in TOPICS or path.name == "conftest.py":
        return None
    if not path.name.startswith("test_"):
        return f"{test} is no test: helpers belong in tests/helpers"
    module = str(path.with_name(path.stem.removeprefix("test_")))
    if module not in modules:
        return f"{test} mirrors no src/avd/{module}.py: move it, or give it a line here"
    return None


def package_modules() -> set[str]:
    return {str(path.relative_to(PACKAGE).with_suffix("")) for path in PACKAGE.rglob("*.py")}


def test_tests_mirror_the_package() -> None:
    modules = package_modules()
    found = [misplaced(str(path.relative_to(TESTS)), modules) for path in sorted(TESTS.rglob("*.py"))]
    assert [fault for fault in found if fault is not None] == []


def test_every_exception_is_there() -> None:
    assert [name for name in [*CROSS_CUTTING, *TOPICS] if not (TESTS / name).exists()] == []


def test_helpers_hold_no_tests() -> None:
    assert sorted(path.name for path in (TESTS / "helpers").rglob("test_*.py")) == []


@pytest.mark.parametrize("test", ["engine/test_gone.py", "engine/tools.py", "test_gone.py", "painter.py"])
def test_the_check_catches(test: str) -> None:
    assert misplaced(test, {"engine/loop", "ui"}) is not None


@pytest.mark.parametrize(
    "test", ["engine/test_loop.py", "test_ui.py", "cli/test_demo.py", "helpers/painter.py", "engine/conftest.py"]
)
def test_the_check_allows(test: str) -> None:
    assert misplaced(test, {"engine/loop", "ui"}) is None
