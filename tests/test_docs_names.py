"""Docs name what exists: paths, options, recipe keys, and names in the code, as `backticked` on every page.

docs/LOG.md and docs/RESULTS.md are records of their day and are left out, as is what stands in blocks of code.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer
from pydantic import BaseModel

import avd
from avd.cli.main import app
from avd.config import InterpolatorRecipe, Recipe, TeacherRecipe, VAERecipe, shipped_recipes

ROOT = Path(__file__).parents[1]
PACKAGE = Path(avd.__file__).parent
RECORDS = {"LOG.md", "RESULTS.md"}
PAGES = sorted(
    page
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "benchmarks").rglob("*.md")]
    if page.name not in RECORDS
)

each_page = pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])

EXAMPLES = {
    "docs/own-videos.md": {"clip.mp4", "clip.txt", "clip.json", "dog.mp4", "dog.txt", "dog.json", "walk.txt", "walk"}
    | {"shard-000.tar/dog.mp4", "runs/cache/skipped.jsonl", "VBench_full_info.json"},
    "docs/adding-a-model.md": {"models/ltx/__init__.py", "pooled", "embedding_2"},
    "docs/adr/0001-record-decisions.md": {"docs/adr/NNNN-title.md"},
    "docs/training-the-miniature.md": {"runs/wan-mini"},
    "docs/vbench.md": {"official_eval_results.json", "official_full_info.json"},
}
"""Names that a page makes up, for the reader's own files and for files to come."""

FOREIGN = {
    "--shutdown-timeout": "torchrun",
    "pre-commit install": "pre-commit",
    "torch.profiler": "PyTorch",
    "WanPipeline.load_lora_weights": "diffusers",
    "max_sequence_length": "diffusers",
    "num_frames": "diffusers",
    "dtype": "diffusers",
    "assert": "Python",
    "sg": "a symbol of the maths",
    "WANDB_PROJECT": "Weights & Biases",
    "VBENCH_CACHE_DIR": "VBench",
    "VBENCH2_CACHE_DIR": "VBench-2.0",
    "mmcv_maximum_version": "mmdet",
    "sampling": "a room",
    "interpolation": "a room of its day, in ADR 2",
}
"""Names of other programs and of earlier days."""

NAME = re.compile(r"[A-Za-z_][\w]*(?:\.[A-Za-z_]\w*)*")
FILE_SUFFIX = re.compile(r"\.(?:py|md|json|jsonl|yaml|toml|txt|safetensors|mp4|html|npz|csv|lock|tar)$")


def mentions(page: Path) -> Iterator[str]:
    """What stands in backticks in a page's prose, without formulas."""
    text = page.read_text(encoding="utf-8")
    text = re.sub(r"^ *```.*?^ *```|\$`[^`]*`\$", "", text, flags=re.DOTALL | re.MULTILINE)
    yield from dict.fromkeys(" ".join(found.split()) for found in re.findall(r"`([^`]+)`", text))


@cache
def sources() -> dict[str, ast.Module]:
    """Every module of the package, by dotted name below `avd`."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = ast.parse(path.read_text(encoding="utf-8"))
    return found


@cache
def module_names(module: str) -> set[str]:
    """What a module defines or imports at its top."""
    names: set[str] = set()
    for node in sources()[module].body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return names


@cache
def classes() -> dict[str, set[str]]:
    """The members of every class: methods, fields, and what methods set on self."""
    found: dict[str, set[str]] = {}
    for tree in sources().values():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                members = found.setdefault(node.name, set())
                members |= {item.name for item in node.body if isinstance(item, ast.FunctionDef)}
                for item in ast.walk(node):
                    if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
                        members.add(item.target.id)
                    elif isinstance(item, ast.Attribute) and isinstance(item.ctx, ast.Store):
                        members.add(item.attr)
    return found


@cache
def other_sources() -> list[ast.Module]:
    """Tools and contract tests, which pages name too."""
    paths = [*(ROOT / "tools").glob("*.py"), *(ROOT / "tests" / "contracts").glob("*.py")]
    return [ast.parse(path.read_text(encoding="utf-8")) for path in paths]


@cache
def words() -> set[str]:
    """Every name in the code, and every word of its strings that is no prose, such as a key or a file."""
    found = {part for name in sources() for part in name.split(".")}
    for tree in [*sources().values(), *other_sources()]:
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " not in node.value.strip():
                found |= {node.value, *re.findall(r"\w+", node.value)}
            elif isinstance(node, ast.Name):
                found.add(node.id)
            elif isinstance(node, ast.Attribute):
                found.add(node.attr)
            elif isinstance(node, ast.arg | ast.keyword):
                found.add(str(node.arg))
            elif isinstance(node, ast.FunctionDef | ast.ClassDef):
                found.add(node.name)
            elif isinstance(node, ast.alias):
                found.add(node.name.rpartition(".")[2])
    return found


@cache
def composed() -> list[re.Pattern[str]]:
    """What f-strings can make that are one word, such as the metrics `<term>_gradient_rms`."""
    nodes = (node for tree in sources().values() for node in ast.walk(tree) if isinstance(node, ast.JoinedStr))
    found = []
    for node in nodes:
        fixed = [part.value if isinstance(part, ast.Constant) else None for part in node.values]
        text = "".join(str(part) for part in fixed if part is not None)
        if re.fullmatch(r"[\w.]{4,}", text):
            found.append(
                re.compile("".join("([A-Za-z_]+)" if part is None else re.escape(str(part)) for part in fixed))
            )
    return found


def is_composed(name: str) -> bool:
    """Whether an f-string makes `name` of words that the code knows; a capital letter stands for any."""
    matches = (pattern.fullmatch(name) for pattern in composed())
    return any(
        match is not None and all(part in words() or re.fullmatch("[A-Z]", part) for part in match.groups())
        for match in matches
    )


@cache
def file_names() -> str:
    """All string literals of the package, among which are the names of the files that it writes."""
    nodes = (node for tree in sources().values() for node in ast.walk(tree))
    return "\n".join(node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str))


@cache
def options() -> set[str]:
    """Every option of every command, and of the benchmarks."""

    def of(command: Any) -> set[str]:
        own = {name for parameter in command.params for name in [*parameter.opts, *parameter.secondary_opts]}
        return own.union(*(of(each) for each in getattr(command, "commands", {}).values()))

    scripts = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "benchmarks").glob("*.py"))
    return of(typer.main.get_command(app)) | set(re.findall(r'"(--[\w-]+)"', scripts)) | {"--help"}


@cache
def recipe_keys() -> set[str]:
    """Every key and section of a recipe, in full and by its last part."""

    def of(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
        for name, field in model.model_fields.items():
            yield prefix + name
            if isinstance(field.default, BaseModel):
                yield from of(type(field.default), f"{prefix}{name}.")

    keys = {key for model in (Recipe, VAERecipe, TeacherRecipe, InterpolatorRecipe) for key in of(model)}
    return keys | {key.rpartition(".")[2] for key in keys} | {"extends", "about"}


def path_exists(name: str, page: Path) -> bool:
    """Below the repository, the package, or the page; a test by its bare name; or a file that the code writes."""
    places = (ROOT, PACKAGE, PACKAGE.parent, page.parent)
    if any((place / name).exists() for place in places) or name in {".venv", ".venv/bin/avd"}:
        return True
    if "/" not in name and name.endswith(".py") and any((ROOT / "tests").rglob(name)):
        return True
    if "/" not in name and name.endswith(".py") and page.name == "oracle.md":
        return (PACKAGE / "world" / "oracle" / name).exists()
    parts = [re.split(r"\d{3,}", part)[0] for part in name.strip("/").split("/")]
    return not name.startswith(("src/", "tests/", "docs/")) and all(part in file_names() for part in parts if part)


def name_exists(name: str) -> bool:
    """A module, a name of a module, a member of a class, or a single word that the code knows."""
    name = name.removeprefix("avd.")
    if name in sources() or name in classes() or is_composed(name):
        return True
    head, _, last = name.rpartition(".")
    if not head:
        return name in words()
    if head in sources():
        return last in module_names(head)
    if f"{head}." in words():  # a prefix of keys
        return last in words()
    if head.islower():  # a variable, such as `clip.read`
        return head in words() and any(last in members for members in classes().values())
    return last in classes().get(head.rpartition(".")[2], set())


def unresolved(mention: str, page: Path) -> str | None:
    """What a mention names that does not exist; None if it exists, or names nothing that could be checked."""
    if mention in FOREIGN or mention in EXAMPLES.get(str(page.relative_to(ROOT)), set()):
        return None
    if mention.startswith(("avd ", "torchrun ", "pip ")) or mention in shipped_recipes():
        return None  # tests/test_docs.py checks commands
    if mention.startswith("make "):
        target = mention.split()[1]
        return None if re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE) else f"target {target}"
    if mention.startswith("--"):
        flags = [word for word in mention.split() if word.startswith("--")]
        wrong = [flag for flag in flags if flag not in options()]
        changed = re.findall(r"--set ([\w.]+)=", mention)
        wrong += [key for key in changed if key not in recipe_keys() and key not in words() and key != "KEY"]
        return f"{wrong}" if wrong else None
    if mention.startswith("python "):
        wrong = [word for word in mention.split()[1:] if not path_exists(word, page)]
        return f"{wrong}" if wrong else None
    if " " not in mention and ("/" in mention or FILE_SUFFIX.search(mention)):
        return None if re.search(r"[<>*|$]", mention) or path_exists(mention, page) else f"path {mention}"
    key = re.fullmatch(r"([a-z_][\w.]*)(?:=|: ).*", mention)
    if key is not None:
        return None if key[1] in recipe_keys() | words() | set(FOREIGN) else f"key {key[1]}"
    call = re.fullmatch(rf"({NAME.pattern})(?:\(.*\))?", mention)
    if call is None:
        return None
    return None if call[1] in recipe_keys() or name_exists(call[1]) else f"name {call[1]}"


@each_page
def test_pages_name_what_exists(page: Path) -> None:
    found = [fault for mention in mentions(page) if (fault := unresolved(mention, page)) is not None]
    assert found == []


@pytest.mark.parametrize(
    "mention",
    [
        "RunStopped",
        "training/cycle.py",
        "tests/training/test_ranks.py",
        "TrainingStep.walk",
        "engine.loop.train",
        "avd.flow.to_velocity",
        "objective.temporal.strength",
        "objective.temporal.strength=0.1",
        "temporal_pull",
        "Draws(seed, n, rows)",
        "--outptu",
        "--set rollout.share=false",
        "make tset",
        "python tests/pages.py docs/planning.md",
        "gone.jsonl",
    ],
)
def test_the_check_catches(mention: str) -> None:
    assert unresolved(mention, ROOT / "docs" / "method.md") is not None


@pytest.mark.parametrize(
    "mention",
    [
        "distillation/step.py",
        "docs/method.md",
        "src/avd/models",
        "TrainingStep.run",
        "engine.loop.run",
        "UpdateRandom(seed, n, samples)",
        "avd.types.UserError",
        "objective.temporal.weight=0.1",
        "temporal_gradient_rms",
        "checkpoints/step-0000120/",
        "metrics.jsonl",
        "--resume",
        "make test",
        "0.6",
    ],
)
def test_the_check_allows(mention: str) -> None:
    assert unresolved(mention, ROOT / "docs" / "method.md") is None


def glossary() -> list[tuple[str, str, str]]:
    """Term, name and file of every row."""
    lines = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    return [(term, name.strip("`"), file.strip("`")) for term, _, _, name, file in rows if term != "term"]


@pytest.mark.parametrize(("term", "name", "file"), glossary(), ids=[row[0] for row in glossary()])
def test_glossary_names_resolve(term: str, name: str, file: str) -> None:
    module = file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    head, _, member = name.partition(".")
    assert head in module_names(module)
    assert not member or member in classes()[head]
