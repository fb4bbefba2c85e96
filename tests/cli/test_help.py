"""Help: every command has some, with an example, and gives it at once."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest
import typer

from avd import __version__
from avd.cli.main import app
from helpers.command import avd


def commands(group: typer.Typer = app, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for command in group.registered_commands:
        assert command.callback is not None
        yield (*path, command.name or command.callback.__name__.replace("_", "-"))
    for inner in group.registered_groups:
        assert inner.typer_instance is not None and inner.name is not None
        yield from commands(inner.typer_instance, (*path, inner.name))


def test_the_commands_are_all_there() -> None:
    names = {" ".join(path) for path in commands()}
    assert names >= {
        "demo", "distill", "generate", "evaluate", "table", "prepare", "world render",
        "train vae", "train teacher", "train interpolator", "train pack", "plan",
    }  # fmt: skip


@pytest.mark.parametrize("path", list(commands()), ids=" ".join)
def test_a_command_has_help_with_an_example_of_itself(path: tuple[str, ...], capfd: pytest.CaptureFixture[str]) -> None:
    assert avd(*path, "--help") == 0
    text = " ".join(capfd.readouterr().out.split())
    assert "Example" in text and f"avd {' '.join(path)} " in text.partition("Example")[2]


@pytest.mark.parametrize("path", [(), ("train",), ("world",)])
def test_no_command_shows_what_there_is(path: tuple[str, ...], capfd: pytest.CaptureFixture[str]) -> None:
    avd(*path)
    assert "Commands" in "".join(capfd.readouterr())


def test_version(capfd: pytest.CaptureFixture[str]) -> None:
    assert avd("--version") == 0
    assert capfd.readouterr().out == f"avd {__version__}\n"


def test_help_loads_no_heavy_library() -> None:
    code = """\
import sys
sys.argv = ["avd", "--help"]
from avd.cli.main import main
try:
    main()
finally:
    heavy = {"av", "diffusers", "matplotlib", "scipy", "torch", "transformers"} & sys.modules.keys()
    assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "distill" in done.stdout
