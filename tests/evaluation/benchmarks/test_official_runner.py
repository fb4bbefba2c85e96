"""The script that an official Python runs: that Python may be old, and has no package of ours."""

from __future__ import annotations

import ast
import sys

from avd.evaluation.benchmarks.official_package import RUNNER


def test_it_is_written_for_python_3_8_and_its_standard_library() -> None:
    tree = ast.parse(RUNNER.read_text(encoding="utf-8"), feature_version=(3, 8))
    names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    names += [str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    roots = {name.partition(".")[0] for name in names}
    assert roots - sys.stdlib_module_names == {"torch"}
