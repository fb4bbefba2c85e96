"""Nothing public without a caller: what only its own tests use is deleted, or made private."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

import avd

PACKAGE = Path(avd.__file__).parent

ENTRY_POINTS = {"TERM", "SUITE", "FAMILY", "FORMAT"}
"""Found by name in the modules of a folder."""

EXCEPTIONS = {
    "saturate": "damage by a known amount, which calibrates the oracle and every suite",
    "slow_down": "likewise",
    "jitter_brightness": "likewise",
    "duplicate": "likewise",
    "fuse": "likewise",
    "scene": "what was drawn in a clip of the world: the truth that tests hold the oracle against",
    "promises": "what a caption of the world was written to promise: likewise",
    "x_BCFHW": "the noisy latents that a term was called with; terms that need them are being added",
}
"""Public definitions that nobody in the package uses, and why."""


@dataclass(frozen=True)
class Definition:
    name: str
    module: str
    lines: range
    is_member: bool = False


def definitions(source: str, module: str) -> Iterator[Definition]:
    """Public classes, functions and constants of a module, and public methods and fields of its public classes."""
    for node in ast.parse(source).body:
        lines = range(node.lineno, (node.end_lineno or node.lineno) + 1)
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = [target.id for target in targets if isinstance(target, ast.Name)]
        else:
            names = [node.name] if isinstance(node, ast.FunctionDef | ast.ClassDef) else []
        if isinstance(node, ast.FunctionDef) and any(".command" in ast.unparse(d) for d in node.decorator_list):
            continue
        yield from (Definition(name, module, lines) for name in names if not name.startswith("_"))
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_") and not is_protocol(node):
            yield from members(node, module)


def members(node: ast.ClassDef, module: str) -> Iterator[Definition]:
    for item in node.body:
        if isinstance(item, ast.FunctionDef):
            name = item.name
        elif isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
            name = item.target.id
        else:
            continue
        if not name.startswith("_"):
            yield Definition(name, module, range(item.lineno, (item.end_lineno or item.lineno) + 1), is_member=True)


def is_protocol(node: ast.ClassDef) -> bool:
    """What a Protocol asks for is used by whoever fills it."""
    return any("Protocol" in ast.unparse(base) for base in node.bases)


@dataclass(frozen=True)
class Use:
    name: str
    module: str
    line: int
    kind: Literal["imported", "variable", "attribute", "word"]

    def is_of(self, definition: Definition) -> bool:
        """Whether this may be a use of `definition`, which a use within itself is not."""
        if self.module == definition.module and self.line in definition.lines:
            return False
        if definition.is_member:
            return self.kind in {"attribute", "word"}
        return self.kind in {"imported", "attribute"} or (self.kind == "variable" and self.module == definition.module)


def uses(source: str, module: str) -> Iterator[Use]:
    """Every name that is read: as a variable, an attribute, or a word in a string; a variable may be imported."""
    tree = ast.parse(source)
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    imported = {alias.asname or alias.name: alias.name for node in imports for alias in node.names}
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            kind: Literal["imported", "variable"] = "imported" if node.id in imported else "variable"
            yield Use(imported.get(node.id, node.id), module, line, kind)
        elif isinstance(node, ast.Attribute):
            yield Use(node.attr, module, line, "attribute")
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.isidentifier():
            yield Use(node.value, module, line, "word")


def unused(sources: dict[str, str], templates: str = "") -> list[str]:
    """Public definitions that nothing reads outside themselves. Imports and `__all__` alone are no use."""
    used: dict[str, list[Use]] = {}
    for module, source in sources.items():
        for use in uses(without_all(source), module):
            used.setdefault(use.name, []).append(use)
    words = set(re.findall(r"\w+", templates))
    found = []
    for module, source in sources.items():
        for each in definitions(source, module):
            called = any(use.is_of(each) for use in used.get(each.name, []))
            if not called and each.name not in words | ENTRY_POINTS | set(EXCEPTIONS):
                found.append(f"{module}: {each.name}")
    return found


def without_all(source: str) -> str:
    """The source with its `__all__` blanked: a list of exports is no caller."""
    return re.sub(
        r"^__all__ = \[.*?\]", lambda found: "\n" * found[0].count("\n"), source, flags=re.DOTALL | re.MULTILINE
    )


def package() -> tuple[dict[str, str], str]:
    sources = {
        str(path.relative_to(PACKAGE)): path.read_text(encoding="utf-8") for path in sorted(PACKAGE.rglob("*.py"))
    }
    return sources, "".join(path.read_text(encoding="utf-8") for path in sorted(PACKAGE.rglob("*.html")))


def test_everything_public_has_a_caller() -> None:
    found = unused(*package())
    assert not found, "\n".join(found)


def test_every_exception_is_needed() -> None:
    sources, _ = package()
    names = {each.name for module, source in sources.items() for each in definitions(source, module)}
    assert set(EXCEPTIONS) <= names


@pytest.mark.parametrize(
    "source",
    [
        "def f(): ...",
        "class A: ...",
        "LIMIT = 1",
        "def f():\n    return f()",
        '__all__ = ["f"]\ndef f(): ...',
        "def f(): ...\ndef _g(f):\n    return 1",
        "class _A: ...\nclass B:\n    def method(self): ...\nx: B\n_y = x",
    ],
)
def test_the_check_catches(source: str) -> None:
    assert len(unused({"a.py": source})) == 1


@pytest.mark.parametrize(
    "source",
    [
        "def _f(): ...",
        "def f(): ...\n_x = f()",
        "TERM = 1",
        "@app.command()\ndef train(): ...",
        "class _P(Protocol):\n    def method(self): ...",
        "class A:\n    field: int\n_x = A().field",
    ],
)
def test_the_check_allows(source: str) -> None:
    assert unused({"a.py": source}) == []
