"""Help: every command has some, with an example, and gives it at once."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest
import typer

from avd import __version__
from avd.cli.main import app
from avd.config import COMMANDS, shipped_recipes
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
        "demo", "distill", "export", "generate", "evaluate", "table", "prepare", "world render",
        "train vae", "train teacher", "train interpolator", "train pack", "plan", "recipes", "compare", "inspect",
    }  # fmt: skip


@pytest.mark.parametrize("path", list(commands()), ids=" ".join)
def test_a_command_has_help_with_an_example_of_itself(path: tuple[str, ...], capfd: pytest.CaptureFixture[str]) -> None:
    assert avd(*path, "--help") == 0
    text = " ".join(capfd.readouterr().out.split())
    assert "Example" in text and f"avd {' '.join(path)} " in text.partition("Example")[2]


@pytest.mark.parametrize("path", [(), ("train",), ("world",)])
def test_no_command_shows_what_there_is(path: tuple[str, ...], capfd: pytest.CaptureFixture[str]) -> None:
    avd(*path)
    shown = "".join(capfd.readouterr())
    inner = {command[len(path)] for command in commands() if command[: len(path)] == path}
    assert inner and all(re.search(rf"^\W*{name} ", shown, flags=re.MULTILINE) for name in inner)


GROUPS = {
    "Use": ["demo", "export", "generate"],
    "Data": ["inspect", "prepare", "world"],
    "Train": ["distill", "methods", "plan", "recipes", "train"],
    "Judge": ["ablate", "compare", "evaluate", "table"],
}


@pytest.mark.parametrize("environment", [{}, {"FORCE_COLOR": "1"}], ids=["piped", "terminal"])
def test_help_is_grouped(environment: dict[str, str]) -> None:
    command = [sys.executable, "-m", "avd", "--help"]
    shown = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=True).stdout
    plain = re.sub(r"\x1b\[[\d;]*m", "", shown)
    assert (plain != shown) == bool(environment)
    titles = [title for title in re.findall(r"^╭─ (\w+) ─", plain, flags=re.MULTILINE) if title != "Options"]
    assert titles == list(GROUPS)
    for title, names in GROUPS.items():
        panel = plain.partition(f"╭─ {title} ─")[2].partition("╰")[0]
        assert sorted(re.findall(r"^│ (\w+) ", panel, flags=re.MULTILINE)) == names


def test_version(capfd: pytest.CaptureFixture[str]) -> None:
    assert avd("--version") == 0
    assert capfd.readouterr().out == f"avd {__version__}\n"


HEAVY = {"av", "diffusers", "matplotlib", "scipy", "torch", "transformers"}


@pytest.mark.parametrize("code", ["import avd.cli", "import avd.cli.main", "from avd.cli.main import main; main()"])
def test_the_command_line_and_its_help_load_no_heavy_library(code: str) -> None:
    program = f"""\
import sys
sys.argv = ["avd", "--help"]
try:
    {code}
finally:
    heavy = {HEAVY} & sys.modules.keys()
    assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert ("distill" in done.stdout) == code.endswith("main()")


def test_recipes_are_listed_by_command_with_a_line_each(capfd: pytest.CaptureFixture[str]) -> None:
    assert avd("recipes") == 0
    out, err = capfd.readouterr()
    listed: dict[str, list[str]] = {}
    for line in out.splitlines():
        if not line.startswith(" "):
            listed[line] = []
        else:
            name, sentence = line.split(maxsplit=1)
            assert sentence.endswith(".")
            listed[list(listed)[-1]].append(name)
    assert not err and listed == {
        f"{command} RECIPE": sorted(shipped_recipes(model)) for model, command in COMMANDS.items()
    }
