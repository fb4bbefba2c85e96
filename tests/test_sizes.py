"""Nothing grows past what one reads at a sitting: files, functions, constructors, rooms."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import avd

ROOT = Path(__file__).parents[1]
PACKAGE = Path(avd.__file__).parent
FOLDERS = (PACKAGE, ROOT / "tests", ROOT / "benchmarks", ROOT / "tools")

FILE_LINES, FUNCTION_LINES, CONSTRUCTOR_ARGUMENTS, ROOM_FILES = 400, 60, 8, 14

EXCEPTIONS = {
    "CacheReport": "a record: one field for each line that `avd inspect` prints",
    "Sample": "a record: what a term may know of the samples that it judges, most of it optional",
    "Settings": "a record: the keys of `avd.json`",
    "Term": "a declaration: what an objective file states, most of it optional",
    "Measure": "a declaration: what a suite says of one value, most of it optional",
    "ClipScores": "a record: one field for each measure of the oracle",
    "ClipMeasures": "a record: one field for each measure of a clip",
    "Track": "a record: one field for each thing that is measured of an object",
    "Thing": "a record: one field for each property of a drawn object",
}
"""Files (by name), functions and classes that may be larger, and why."""


def length(node: ast.FunctionDef | ast.AsyncFunctionDef, is_command: bool) -> int:
    """Lines of a function. Of a command the signature is left out: it is the help of its options."""
    first = node.body[0].lineno if is_command else node.lineno
    return (node.end_lineno or first) - first + 1


def constructor_arguments(node: ast.ClassDef) -> int:
    for item in node.body:
        if isinstance(item, ast.FunctionDef) and item.name == "__init__":
            return len([*item.args.posonlyargs, *item.args.args, *item.args.kwonlyargs]) - 1
    if any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list):
        return sum(isinstance(item, ast.AnnAssign) and "ClassVar" not in ast.unparse(item) for item in node.body)
    return 0


def oversized(source: str, name: str) -> Iterator[str]:
    """One line for each thing in the file `name` that is too large."""
    lines = source.count("\n")
    if lines > FILE_LINES and name not in EXCEPTIONS:
        yield f"{name}: {lines} lines, at most {FILE_LINES}: split it by meaning"
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name not in EXCEPTIONS:
            found = length(node, is_command=name.startswith("src/avd/cli/"))
            if found > FUNCTION_LINES:
                yield f"{name}: {node.name} has {found} lines, at most {FUNCTION_LINES}: split it by meaning"
        elif isinstance(node, ast.ClassDef) and node.name not in EXCEPTIONS:
            found = constructor_arguments(node)
            if found > CONSTRUCTOR_ARGUMENTS:
                yield f"{name}: {node.name} takes {found} arguments, at most {CONSTRUCTOR_ARGUMENTS}: group them"


def test_files_functions_and_constructors_stay_small() -> None:
    found = []
    for path in sorted(path for folder in FOLDERS for path in folder.rglob("*.py")):
        found += oversized(path.read_text(encoding="utf-8"), str(path.relative_to(ROOT)))
    assert not found, "\n".join(found)


def test_rooms_stay_small() -> None:
    rooms = {path.parent for path in PACKAGE.rglob("*.py")}
    counts = {room: len([path for path in room.glob("*.py") if path.name != "__init__.py"]) for room in rooms}
    found = [f"{room.relative_to(ROOT)}: {count} files" for room, count in counts.items() if count > ROOM_FILES]
    assert not found, f"more than {ROOM_FILES}: " + ", ".join(found)


def test_every_exception_is_needed() -> None:
    sources = [path.read_text(encoding="utf-8") for path in sorted(PACKAGE.rglob("*.py"))]
    classes = [node for source in sources for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ClassDef)]
    large = {node.name for node in classes if constructor_arguments(node) > CONSTRUCTOR_ARGUMENTS}
    assert set(EXCEPTIONS) <= large


@pytest.mark.parametrize(
    "source",
    [
        "x = 1\n" * (FILE_LINES + 1),
        "def f():\n" + "    x = 1\n" * FUNCTION_LINES,
        "class A:\n    def __init__(self, a, b, c, d, e, f, g, h, i): ...",
        "class A:\n    def __init__(self, a, b, c, d, *, e, f, g, h, i): ...",
        "@dataclass(frozen=True)\nclass A:\n" + "".join(f"    x{i}: int\n" for i in range(9)),
    ],
)
def test_the_check_catches(source: str) -> None:
    assert len(list(oversized(source, "src/avd/x.py"))) == 1


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("src/avd/x.py", "def f():\n" + "    x = 1\n" * (FUNCTION_LINES - 1)),
        ("src/avd/cli/x.py", "def f(\n" + "    x,\n" * FUNCTION_LINES + "):\n    return 1"),
        ("src/avd/x.py", "class A:\n    def __init__(self, a, b, c, d, e, f, g, h): ..."),
    ],
)
def test_the_check_allows(name: str, source: str) -> None:
    assert list(oversized(source, name)) == []
