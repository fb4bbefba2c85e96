"""Run by the Python of an official benchmark, which knows nothing of this project: one dimension, or a description.

    PYTHON official_runner.py describe PACKAGE
    PYTHON official_runner.py run REQUEST.json

The first prints a line, `MARK` and JSON: the package's folder, version and digest of code, and the number of GPUs. Only
the standard library, torch and the official package are used, and nothing newer than Python 3.8.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import sys
import threading
from typing import Any

MARK = "official package: "
"""Begins the line of a description, among what the package's imports may print."""


def describe(package: str) -> None:
    """What the package is: installed versions have a number, and checkouts may be of any commit, or changed."""
    import torch

    folder = _folder(importlib.import_module(package))
    code = hashlib.sha256()
    for above, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            if name.endswith(".py"):
                path = os.path.join(above, name)
                code.update(os.path.relpath(path, folder).encode() + b"\0")
                with open(path, "rb") as file:
                    code.update(hashlib.sha256(file.read()).digest())
    try:
        from importlib.metadata import version

        number = version(package)
    except Exception:  # a checkout that is not installed
        number = None
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    found = {"folder": folder, "version": number, "code": code.hexdigest(), "gpus": gpus}
    print("\n" + MARK + json.dumps(found))


def run_dimension(request: dict[str, Any]) -> None:
    """Run the official code on one dimension."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    import torch

    module = importlib.import_module(request["package"])
    _enter(request["work"], _folder(module))
    videos = _still_videos(request["videos"], request["still"]) if request["still"] else request["videos"]
    benchmark = getattr(module, request["entry"])(torch.device(request["device"]), request["info"], request["output"])
    benchmark.evaluate(
        videos_path=videos,
        name=request["name"],
        dimension_list=[request["dimension"]],
        **request["arguments"],
    )


def _folder(module: Any) -> str:
    return os.path.dirname(os.path.abspath(module.__file__))


def _enter(work: str, package: str) -> None:
    """Make `work`, with a link to the package in it, and go there.

    VBench-2.0 names its own files by paths relative to where it lies, and writes there: a log, and pieces of the videos
    that it takes again for any other video of that name.
    """
    os.makedirs(work)
    os.symlink(package, os.path.join(work, os.path.basename(package)))
    os.chdir(work)


def _still_videos(videos: str, target: str) -> str:
    """A folder below `target` with up to five videos per prompt that are still, as VBench's own filter chooses them."""
    import argparse

    static_filter = importlib.import_module("vbench.cli.static_filter")
    # Fetches the network that the filter uses.
    importlib.import_module("vbench.utils").init_submodules(["dynamic_degree"])
    parser = argparse.ArgumentParser()
    static_filter.register_subparsers(parser.add_subparsers())
    arguments = parser.parse_args(["static_filter", "--videos_path", videos, "--result_path", target])
    arguments.func(arguments)
    return os.path.join(target, "filtered_videos")


def _end_with_parent() -> None:
    """End when standard input closes: whoever asked has ended, and nobody would read the result."""
    os.read(0, 1)
    os._exit(1)


if __name__ == "__main__":
    # This file's folder, whose modules are not the benchmark's; some settings of Python leave it out.
    sys.path[:] = [place for place in sys.path if place != os.path.dirname(os.path.abspath(__file__))]
    if sys.argv[1] == "describe":
        describe(sys.argv[2])
    else:
        with open(sys.argv[2], encoding="utf-8") as file:
            run_dimension(json.load(file))
