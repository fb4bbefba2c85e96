"""The Python that a user names: what it must be, and what is asked of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from avd.evaluation.benchmarks.official_package import find_package
from avd.evaluation.suites.vbench import VBench
from avd.types import UserError
from helpers.official import Fake, fake

__all__ = ["fake"]


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("#!/bin/sh\nexit 0\n", "is no Python, for it does not run a script: make one with `python3.10"),
        ("#!/bin/sh\necho $@\n", "is no Python, for it does not run a script: make one with `python3.10"),
        ("no program\0", r"cannot be run \(Exec format error\): make one with `python3.10"),
    ],
)
def test_a_program_that_is_no_python_is_refused_in_one_line(tmp_path: Path, script: str, message: str) -> None:
    program = tmp_path / "python"
    program.write_text(script)
    program.chmod(0o755)
    with pytest.raises(UserError, match=message) as caught:
        find_package(VBench.scoring, program)
    assert "\n" not in str(caught.value)


def test_what_imports_print_does_not_hide_the_description(fake: Fake) -> None:
    package = fake.folder / "vbench" / "__init__.py"
    package.write_text("import atexit; atexit.register(print, 'goodbye')\nprint('hello', end='')\n")
    assert find_package(VBench.scoring, fake.python).folder == fake.folder / "vbench"


def test_the_first_entry_of_pythonpath_is_kept_where_python_leaves_out_the_scripts_folder(
    fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONSAFEPATH", "1")
    assert find_package(VBench.scoring, fake.python).folder == fake.folder / "vbench"
