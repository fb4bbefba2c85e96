"""Imports point down: each room of the package uses only the rooms below it."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

import avd
from avd.config import shipped_recipes

PACKAGE = Path(avd.__file__).parent

# Highest first. Rooms on one level do not import each other. The empty name is the package's own `__init__`.
LEVELS: list[set[str]] = [
    {"__main__"},
    {"cli"},
    {"report", "experiments"},
    {"evaluation"},
    {"distillation", "miniature"},
    {"engine", "planning", "export"},
    {"sampling"},
    {"methods", "models"},
    {"data", "world", "config"},
    {"objectives", "measures"},
    {"ui", "files"},
    {"section"},
    {"flow"},
    {"types"},
    {""},
]
HEIGHT = {room: len(LEVELS) - i for i, level in enumerate(LEVELS) for room in level}

FAMILY_NAME = re.compile(r"(?<![A-Za-z])wan(?![a-z])|Wan(?![a-z])|WAN(?!DB)")
"""Wan's, in a word or an identifier; no part of `wanted`, `allowance` or `wandb`."""
FAMILY_ROOMS = ("avd.models.wan", "avd.miniature")
ALLOWED_NAMES = sorted(["wan-mini", *shipped_recipes()], key=len, reverse=True)

TRAINING_ROOMS = {"engine", "distillation", "miniature", "methods", "objectives", "config"}
WITHOUT_TRAINING = ("avd.sampling", "avd.models", "avd.cli.generate")
"""What people run who only make videos: none of it loads training code."""

MODEL_LIBRARIES = {"diffusers", "transformers"}
MODEL_LIBRARY_USERS = ("avd.models", "avd.miniature", "avd.export")


def room_of(module: str) -> str:
    """`avd.world.render` -> `world`; `avd` -> the empty name."""
    return module.partition(".")[2].partition(".")[0]


def imported_modules(source: str, module: str, is_package: bool) -> Iterator[str]:
    """Full dotted names of everything that `source` imports, wherever in the file the import stands."""
    package = module if is_package else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")
                base = ".".join(parents[: len(parents) - node.level + 1] + ([base] if base else []))
            # `from avd import world` imports a room, `from avd.world import World` a name out of one.
            yield from (f"avd.{alias.name}" if base == "avd" else base for alias in node.names)


def violations(source: str, module: str, is_package: bool = False) -> list[str]:
    """One line for each import of `source` that the rules forbid."""
    room = room_of(module)
    if room not in HEIGHT:
        return [f"{module} is in no known room: give {room!r} a level here, and say why in an ADR"]
    found = []
    for target in imported_modules(source, module, is_package):
        library = target.partition(".")[0]
        if library == "avd":
            other = room_of(target)
            if other not in HEIGHT:
                continue  # a name such as `avd.__version__`; a room without a level is reported for its own files
            if other != room and HEIGHT[other] >= HEIGHT[room]:
                found.append(f"{module} imports {target}, which is not below it")
            if other in TRAINING_ROOMS and module.startswith(WITHOUT_TRAINING):
                found.append(f"{module} imports {target}; making videos needs no training code")
            if room == "objectives" and other not in {"objectives", "section", "flow", "types"}:
                found.append(f"{module} imports {target}; objectives know only section, flow and types")
        elif library in MODEL_LIBRARIES and not module.startswith(MODEL_LIBRARY_USERS):
            found.append(f"{module} imports {target}; only {' and '.join(MODEL_LIBRARY_USERS)} may")
        elif library == "torch" and room == "report":
            found.append(f"{module} imports {target}; a report is made without torch")
    return found


def test_imports_point_down() -> None:
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        is_package = parts[-1] == "__init__"
        module = ".".join(parts[:-1] if is_package else parts)
        found += violations(path.read_text(encoding="utf-8"), module, is_package)
    assert not found, "\n".join(found)


def family_names(source: str) -> list[str]:
    """Every name, string and comment that speaks of Wan, but for the names of the miniature and of recipes."""
    for name in ALLOWED_NAMES:
        source = source.replace(name, "")
    found = []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        texts = {tokenize.NAME, tokenize.STRING, tokenize.COMMENT, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}
        if token.type in texts and FAMILY_NAME.search(token.string):
            found.append(f"line {token.start[0]}: {token.string.strip()[:60]}")
    return found


def may_name_a_family(source: str, module: str) -> bool:
    """In its own rooms, and in an export format of that family alone: it declares `FORMAT` and imports the family."""
    own_format = room_of(module) == "export" and re.search(r"^FORMAT\b", source, flags=re.MULTILINE) is not None
    imported = imported_modules(source, module, is_package=False)
    return module.startswith(FAMILY_ROOMS) or (own_format and any(name.startswith(FAMILY_ROOMS) for name in imported))


def test_a_family_is_named_in_its_own_folder_alone() -> None:
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        module, source = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts), path.read_text("utf-8")
        if not may_name_a_family(source, module):
            found += [f"{module}, {name}" for name in family_names(source)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("module", "source", "allowed"),
    [
        ("avd.export.native", "from avd.models.wan.model import VideoModel\nFORMAT = 1", True),
        ("avd.export.native", "FORMAT = 1", False),
        ("avd.export.writing", "from avd.models.wan.model import VideoModel", False),
        ("avd.distillation.task", "from avd.models.wan.model import VideoModel\nFORMAT = 1", False),
        ("avd.models.wan.lora", "", True),
    ],
)
def test_a_format_of_one_family_may_name_it(module: str, source: str, allowed: bool) -> None:
    assert may_name_a_family(source, module) == allowed


@pytest.mark.parametrize(
    "source",
    [
        "from avd.models.wan import model",
        "x: WanVelocity",
        "AutoencoderKLWan()",
        "WAN22_TI2V = 1",
        "x = f'{1} Wan2.1'",
        "# as Wan does",
    ],
)
def test_the_family_check_catches(source: str) -> None:
    assert len(family_names(source)) == 1


@pytest.mark.parametrize("source", ["wanted = allowance", "import wandb", "'WANDB_MODE'", "model = 'wan-mini'"])
def test_the_family_check_allows(source: str) -> None:
    assert family_names(source) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("avd.world.oracle", "from avd.engine.loop import train"),
        ("avd.world.oracle", "from avd import cli"),
        ("avd.world.oracle", "from ..engine import loop"),
        ("avd.models.interpolator", "import avd.sampling"),
        ("avd.types", "from avd.flow import to_velocity"),
        ("avd.sampling.choose", "from avd.methods.method import Method"),
        ("avd.cli.generate", "def late():\n    from avd.engine.ranks import process_group"),
        ("avd.engine.loop", "def late():\n    from avd.report import write_report"),
        ("avd.objectives.temporal", "from avd.files import write_text"),
        ("avd.engine.loop", "import diffusers"),
        ("avd.world.scene", "from transformers import UMT5EncoderModel"),
        ("avd.report.page", "import torch"),
        ("avd.attic.old", "import math"),
    ],
)
def test_the_check_catches(module: str, source: str) -> None:
    assert len(violations(source, module)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("avd.cli.main", "from avd import __version__"),
        ("avd.cli.main", "from avd.engine import loop\nfrom .demo import demo"),
        ("avd.models.wan.model", "from diffusers import WanTransformer3DModel"),
        ("avd.objectives.temporal", "import torch\nfrom avd.types import Velocity"),
        ("avd.report.page", "from .rows import Row"),
    ],
)
def test_the_check_allows(module: str, source: str) -> None:
    assert violations(source, module) == []
