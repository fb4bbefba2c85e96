"""Sampling needs no training code: what a process that only samples has loaded."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from helpers.tiny import tiny_interpolator, tiny_model

TRAINING = ("avd.distillation", "avd.engine", "avd.miniature", "avd.objectives", "avd.planning")


def loaded_by(program: str, folder: Path) -> list[str]:
    """Modules of training that a Python program leaves loaded, however it ends."""
    watched = f"""\
import sys
try:
    {program}
finally:
    print(*[name for name in sys.modules if name.startswith({TRAINING})])
"""
    done = subprocess.run([sys.executable, "-c", watched], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `student`, of two steps, which may run at half rate."""
    place = tmp_path_factory.mktemp("place")
    tiny_model().save(place / "student", student_timesteps=(1000, 500))
    tiny_interpolator().save(place / "student" / "interpolator")
    return place


def test_the_watch_sees_training_code(tmp_path: Path) -> None:
    assert "avd.engine.loop" in loaded_by("import avd.engine.loop", tmp_path)


@pytest.mark.parametrize("module", ["rollout", "teacher", "samplers", "choose", "placement", "generation"])
def test_sampling_loads_no_training_code(module: str, tmp_path: Path) -> None:
    assert loaded_by(f"import avd.sampling.{module}", tmp_path) == []


@pytest.mark.parametrize("options", [["--half-rate"], ["--steps", "2"]], ids=["student", "many steps"])
def test_generate_loads_no_training_code(options: list[str], student: Path) -> None:
    video = f"{options[0].strip('-')}.mp4"
    words = ["avd", "generate", "student", "--prompt", "a red square", *options, "--output", video]
    assert loaded_by(f"sys.argv = {words}; from avd.cli.main import main; main()", student) == []
    assert (student / video).stat().st_size > 0
