"""Code, docs and messages use the field's words, and a public name means one thing.

docs/glossary.md has the words to use. docs/LOG.md and docs/RESULTS.md are records of their day and stay as written.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

import avd

ROOT = Path(__file__).parents[1]
PACKAGE = Path(avd.__file__).parent
FOLDERS = (PACKAGE, ROOT / "tests", ROOT / "benchmarks", ROOT / "tools")
RECORDS = {"LOG.md", "RESULTS.md"}
SELF = Path(__file__).name

_COUNTED = (
    "clips|tokens|frames|forwards|calls|pixels|bytes|seconds|s|ms|GB|MB|TFLOP/s|steps|updates|rows|processes|videos"
)
_UNITS = (
    "rank|clip|update|cycle|step|run|layer|token|GPU|process|video|prompt|side|line|file|timestep|stage"
    "|noise level|shard"
)

PROSE = {
    r"(?i)\btold\b(?! apart\b)": "reported, named",
    r"(?i)\bsaid\b": "reported, shown",
    r"(?i)\bmend(?:s|ed|ing)?\b": "fix",
    r"(?i)\bdear\b": "expensive",
    r"(?i)\banew\b": "again",
    r"(?i)\b(?:go|goes|went|gone) on\b(?! top\b)": "resumes, continues",
    r"(?i)(?<!as a )(?<!on the )\bwhole\b(?! (?:numbers?|words?)\b)": "full, complete, intact",
    r"(?i)\bfigures?\b": "metrics, numbers",
    rf"(?i)\b(?:{_COUNTED}),? an? (?:{_UNITS})\b(?! (?:\w+s|has|is|of|at|with)\b)": "per",
    rf"(?i)\b(?:\d[\d,.]*|one|two|once|twice|times|one (?!is |by |has )\w+) an? (?:{_UNITS})\b": "per",
    r"\bprocess a GPU\b|\b(?:row|prompt|caption|line) a (?:line|clip|prompt|video)\b": "per",
    r"\bsharers\b": "context_size",
    r"\bpulls\b": "gradient",
    r"_pull\b": "_gradient_rms",
    r"\blook_at\b": "measure_pixels",
    r"\b(?:ALONE|GO_ON|whole_folder|_Studio|Ranks\.place)\b": "see the glossary",
    r"\A ?Of ": "begin with the noun",
}
"""What prose, comments and strings do not say, and what they say instead."""

NAMES = {
    r"_?Pulls|.*_pulls?": "TermGradients, *_gradient_rms",
    r"[Dd]raws": "UpdateRandom, random",
    r"sharers": "context_size",
    r"expectation": "global_mean",
    r"ALONE": "SINGLE_PROCESS",
    r"_?Studio": "RunSampler",
    r"_?Look|look_at|looks?": "PixelStats, measure_pixels",
    r"_?Verdict|GO_ON": "Decision, CONTINUE",
    r"(?:.*_)?(?:[Ww]hole|told(?!_apart)|said|mend|anew|dear|figures)(?:_.*)?": "full; report; fix; again; metrics",
    r".*_go(?:es)?_on(?:_.*)?": "resumes",
}
"""What nothing is called: no variable, argument, function, class or attribute that is defined."""

FUNCTIONS = r"joined|spread|approach|take|claim"
"""What no function is called: process_group, shard, run_until, pop_metrics, lock."""

LOCALS = r"(?:told|asked|here|kept|said)(?:_[A-Z]+)?"
"""What no variable or argument of a function is called besides. `kept` may be a field: files on disk have such keys."""

RANKS_METHODS = {"total", "largest", "any", "wait", "whole", "first", "place"}


def prose_faults(text: str) -> list[str]:
    return [f"{found[0]!r}: {better}" for bad, better in PROSE.items() for found in re.finditer(bad, text)]


def python_texts(source: str) -> Iterator[tuple[int, str]]:
    """Comments and strings with their lines. A literal that is one word is data, such as a key, and is left out."""
    parts = {tokenize.STRING, tokenize.COMMENT, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in parts:
            text = re.sub(r"\s+", " ", token.string.strip("rbfRBF").strip("\"'# "))
            if " " in text:
                yield token.start[0], text


def defined_names(source: str) -> Iterator[tuple[int, str, str]]:
    """Line, name and kind (class, function, local, global, attribute) of all that `source` defines."""

    def visit(node: ast.AST, in_function: bool) -> Iterator[tuple[int, str, str]]:
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield line, node.name, "class" if isinstance(node, ast.ClassDef) else "function"
            in_function = not isinstance(node, ast.ClassDef)
        elif isinstance(node, ast.arg):
            yield line, node.arg, "local"
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield line, node.id, "local" if in_function else "global"
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield line, node.attr, "attribute"
        for child in ast.iter_child_nodes(node):
            yield from visit(child, in_function)

    yield from visit(ast.parse(source), False)


def python_faults(source: str) -> list[str]:
    found = [f"line {line}: {fault}" for line, text in python_texts(source) for fault in prose_faults(text)]
    for line, name, kind in defined_names(source):
        better = next((better for bad, better in NAMES.items() if re.fullmatch(bad, name)), None)
        banned_here = {"local": LOCALS, "function": FUNCTIONS}.get(kind)
        if better or (banned_here is not None and re.fullmatch(banned_here, name)):
            found.append(f"line {line}: name {name!r}: {better or 'say what it is'}")
    return found


def page_text(page: Path) -> str:
    """The prose of a page: for HTML, what a reader sees."""
    text = page.read_text(encoding="utf-8")
    if page.suffix != ".html":
        return text
    return re.sub(r"<(style|script)\b.*?</\1>|<[^>]*>", " ", text, flags=re.DOTALL)


def faults_of(path: Path) -> list[str]:
    if path.suffix == ".py":
        found = python_faults(path.read_text(encoding="utf-8"))
    else:
        lines = enumerate(page_text(path).splitlines(), start=1)
        found = [f"line {number}: {fault}" for number, line in lines for fault in prose_faults(line)]
    return [f"{path.relative_to(ROOT)}, {fault}" for fault in found]


def paths() -> list[Path]:
    pages = [*ROOT.glob("*.md"), ROOT / "Makefile", *(ROOT / "docs").rglob("*.md"), *(ROOT / "benchmarks").glob("*.md")]
    texts = [path for folder in FOLDERS for kind in ("py", "yaml", "html") for path in folder.rglob(f"*.{kind}")]
    return sorted(path for path in [*pages, *texts] if path.name not in RECORDS | {SELF})


@pytest.mark.parametrize("folder", sorted({str(path.parent.relative_to(ROOT)) for path in paths()}))
def test_the_fields_words_are_used(folder: str) -> None:
    found = [fault for path in paths() if str(path.parent.relative_to(ROOT)) == folder for fault in faults_of(path)]
    assert not found, "\n".join(found)


def test_ranks_methods_say_what_they_do() -> None:
    tree = ast.parse((PACKAGE / "engine" / "ranks.py").read_text(encoding="utf-8"))
    ranks = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Ranks")
    assert not RANKS_METHODS & {node.name for node in ranks.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize(
    "source",
    [
        '"""Of a cycle, over all clips."""',
        'def f():\n    """Of the optimizer\'s step."""',
        "# the user is told once",
        "x = f'{1} tokens a clip'",
        "x = '24 clips a rank'",
        "x = 'twice a cycle'",
        "x = 'start one process a GPU'",
        "# a run goes on from there",
        "# judged anew",
        "x = 'three whole models'",
        "x = 'the figures of a run'",
        "x = 'this is the dear part'",
        "x = 'what a user can mend'",
        "class _Pulls: pass",
        "self.temporal_pull = 1",
        "def look_at(x): pass",
        "class Verdict: pass",
        "def take(self): pass",
        "def f():\n    told = 1",
        "def f(asked): pass",
        "def f():\n    for kept in []: pass",
        "whole = 1",
        "def whole_folder(): pass",
    ],
)
def test_the_check_catches(source: str) -> None:
    assert python_faults(source)


@pytest.mark.parametrize(
    "source",
    [
        "x = 'look at the sheet first'",
        "x = 'three whole numbers, moved as a whole'",
        "x = 'terms are told apart'",
        "x = 'goes on top of the base'",
        "x = 'fewer frames than a clip needs'",
        "class Item:\n    kept: int",
        "x = {'kept': 1, 'told': 2}",
        "x = 'per clip, each clip of a rank'",
        "def takes(self): pass",
        "x = 'network forwards of a cycle'",
    ],
)
def test_the_check_allows(source: str) -> None:
    assert python_faults(source) == []


# One meaning for each public name

SHARED_NAMES = {
    "TERM": "each objective's declaration, found by its name",
    "SUITE": "each evaluation suite's, likewise",
    "FAMILY": "each model family's, likewise",
    "FORMAT": "each export format's, likewise",
    "load": "a recipe of a kind; and a Wan folder, which is reached through `FAMILY` alone",
}
"""Public names that two modules may define, and why."""


def public_names(source: str) -> Iterator[str]:
    """What a module defines for others: classes, functions and constants without an underscore, not what it imports."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names = [node.name]
        else:
            targets = (
                node.targets
                if isinstance(node, ast.Assign)
                else [node.target]
                if isinstance(node, ast.AnnAssign)
                else []
            )
            names = [target.id for target in targets if isinstance(target, ast.Name)]
        yield from (name for name in names if not name.startswith("_"))


def shared_names(sources: dict[str, str]) -> list[str]:
    """Public names that several modules define. Commands are named for the user, and no module imports them."""
    modules = defaultdict(list)
    for module, source in sources.items():
        if not module.startswith("cli/"):
            for name in dict.fromkeys(public_names(source)):
                modules[name].append(module)
    return [
        f"{name}: {', '.join(where)}" for name, where in modules.items() if len(where) > 1 and name not in SHARED_NAMES
    ]


def test_a_public_name_means_one_thing() -> None:
    sources = {
        str(path.relative_to(PACKAGE)): path.read_text(encoding="utf-8") for path in sorted(PACKAGE.rglob("*.py"))
    }
    assert shared_names(sources) == []


def test_the_check_of_names_catches() -> None:
    sources = {
        "a.py": "class Sampler: ...\nLIMIT = 1",
        "b.py": "def Sampler(): ...",
        "c.py": "LIMIT: int = 2\n_X = 1",
        "d.py": "_X = 1",
    }
    assert shared_names(sources) == ["Sampler: a.py, b.py", "LIMIT: a.py, c.py"]
    assert shared_names({"a.py": "from b import Sampler", "b.py": "class Sampler: ..."}) == []
