"""Shows that a change moves no number: trains miniature configurations from two sources and compares the bytes.

    make same REF=main             every configuration, in about four minutes
    make same REF=main ONLY=dmd    those whose name begins with dmd

One source is that of the commit REF, in a temporary git worktree; the other is src/ as it is now, uncommitted changes
included. Both train the configurations of tests/helpers/miniatures.py on one thread of this machine. Compared are the
student's safetensors files, the tensors of every checkpoint, and metrics.jsonl without wall time.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NoReturn

import torch
from safetensors.torch import load_file
from torch import Tensor

from avd.types import UserError
from helpers.miniatures import Configuration, configurations, read_metrics

RENAMED_METRICS: dict[str, str] = {"_pull": "_gradient_rms"}
"""Metrics' names, or endings of names, that have changed since REF, old to new: REF's are renamed before comparing."""

DROPPED_TENSORS = frozenset({"loss_means.mean", "loss_means.seen"})
"""Tensors that checkpoints of REF hold and now hold only where a recipe makes use of them."""

ADDED_METRICS = frozenset(f"distribution_matching_{part}_gradient_rms" for part in ("unguided", "guidance"))
"""Metrics that runs log now and did not at REF."""

ROOT = Path(__file__).resolve().parents[1]


class Different(Exception):
    """The first difference, in one line."""


def main() -> None:
    """Exit code 0: all the same; 1: one differs or cannot be trained; 2: the arguments are wrong."""
    parser = argparse.ArgumentParser(description="compare the numbers of REF with those of the working tree")
    parser.add_argument("ref", help="a commit")
    parser.add_argument("only", nargs="?", default="", help="how the configurations' names begin")
    arguments = parser.parse_args()
    commit = _commit(arguments.ref)
    if commit is None:
        found = f"{arguments.ref} is no commit" if arguments.ref else "REF is missing"
        _refuse(f"{found}: name the one to compare with, as in `make same REF=main`")
    try:
        known = configurations()
    except UserError as error:  # a recipe that cannot be read
        _refuse(str(error))
    chosen = [configuration for configuration in known if configuration.name.startswith(arguments.only)]
    if not chosen:
        _refuse(f"no configuration begins with {arguments.only}: there are {', '.join(c.name for c in known)}")
    with TemporaryDirectory(prefix="avd-same-") as name:
        folder = Path(name)
        now = folder / "now"  # a copy, so that an edit meanwhile does no harm
        shutil.copytree(ROOT / "src", now, ignore=shutil.ignore_patterns("__pycache__"))
        with _source_of(commit, folder / "ref") as before:
            outcomes = [_report(configuration, before, now, folder / "runs") for configuration in chosen]
    sys.exit(0 if all(outcomes) else 1)


def _refuse(message: str) -> NoReturn:
    print(f"same: {message}", file=sys.stderr)
    sys.exit(2)


def _commit(ref: str) -> str | None:
    """The hash of a commit; None for what is none."""
    command = ["git", "-C", str(ROOT), "rev-parse", "--verify", "--quiet", "--end-of-options", ref + "^{commit}"]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout.strip() if ref and done.returncode == 0 else None


@contextmanager
def _source_of(commit: str, worktree: Path) -> Iterator[Path]:
    """The src folder of a commit, in a git worktree that is there for the block."""
    git = ["git", "-C", str(ROOT), "worktree"]
    subprocess.run([*git, "add", "--quiet", "--detach", str(worktree), commit], check=True)
    try:
        yield worktree / "src"
    finally:
        subprocess.run([*git, "remove", "--force", str(worktree)], check=True)


def _report(configuration: Configuration, before: Path, now: Path, runs: Path) -> bool:
    """Train and compare one configuration, and print its line; whether nothing differs."""
    if not any(before.rglob(f"recipes/{configuration.recipe}.yaml")):
        print(f"{configuration.name}: new, not compared", flush=True)
        return True
    runs.mkdir()
    try:
        for source, run in ((before, "before"), (now, "now")):
            _train(source, configuration, runs / run)
        outcome = compare_runs(runs / "before", runs / "now")
    except Different as difference:
        print(f"{configuration.name}: {difference}", flush=True)
        return False
    finally:
        shutil.rmtree(runs)  # 400 MB
    print(f"{configuration.name}: same ({outcome})", flush=True)
    return True


def _train(source: Path, configuration: Configuration, output: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}

    def python(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *arguments]
        return subprocess.run(command, cwd=output.parent, env=environment, capture_output=True, text=True)

    imported = python("-c", "import avd; print(avd.__file__)").stdout.strip()
    if not Path(imported).is_relative_to(source):
        raise Different(f"cannot be compared: {source} was to be trained, and {imported or 'nothing'} was imported")
    done = python("-m", "avd", *configuration.arguments(output))
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise Different(f"cannot be trained {output.name}: exit code {done.returncode}, {last}")


def compare_runs(before: Path, now: Path) -> str:
    """What two run folders were compared in, in words. Raises Different where they differ, or hold too little.

    What a run writes first is compared first, so that the difference found is the earliest.
    """
    metrics = [read_metrics(run / "metrics.jsonl") for run in (before, now)]
    renamed = sorted({key for line in metrics[0] for key in line if _renamed(key) != key})
    old_lines = [{_renamed(key): value for key, value in line.items()} for line in metrics[0]]
    added = ADDED_METRICS & {key for line in metrics[1] for key in line} - {key for line in old_lines for key in line}
    new_lines = [{key: value for key, value in line.items() if key not in added} for line in metrics[1]]
    _compare_metrics(old_lines, new_lines)
    checkpoints = [_checkpoints(run) for run in (before, now)]
    _compare_names("checkpoints", *checkpoints)
    dropped: set[str] = set()
    for name, files in sorted(checkpoints[0].items()):
        old, new = _tensors(files), _tensors(checkpoints[1][name])
        dropped |= DROPPED_TENSORS & (old.keys() - new.keys())
        _compare_tensors(str(name), {key: old[key] for key in old.keys() - dropped}, new)
    students = [{p.relative_to(run): p for p in (run / "student").rglob("*.safetensors")} for run in (before, now)]
    _compare_names("student", *students)
    for name, path in sorted(students[0].items()):
        other = students[1][name]
        if path.read_bytes() != other.read_bytes():
            _compare_tensors(str(name), load_file(path), load_file(other))
            raise Different(f"{name}: equal tensors, other bytes around them")
    counts = {"updates": len(metrics[0]), "checkpoints": len(checkpoints[0]), "student files": len(students[0])}
    if 0 in counts.values():
        raise Different(f"cannot be compared: {counts}")
    compared = ", ".join(f"{count} {what}" for what, count in counts.items())
    compared += f"; of REF's metrics renamed: {', '.join(renamed)}" if renamed else ""
    compared += f"; metrics that REF lacks: {', '.join(sorted(added))}" if added else ""
    return compared + (f"; of REF's tensors dropped: {', '.join(sorted(dropped))}" if dropped else "")


def _checkpoints(run: Path) -> dict[Path, list[Path]]:
    """The safetensors files of a run by their folder, bar the student's."""
    found: dict[Path, list[Path]] = {}
    for path in sorted(run.rglob("*.safetensors")):
        folder = path.parent.relative_to(run)
        if folder.parts[:1] != ("student",):
            found.setdefault(folder, []).append(path)
    return found


def _tensors(files: list[Path]) -> dict[str, Tensor]:
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def _compare_names(what: str, before: dict[Any, Any], now: dict[Any, Any]) -> None:
    lost, new = sorted(map(str, before.keys() - now.keys())), sorted(map(str, now.keys() - before.keys()))
    if lost or new:
        raise Different(f"{what}: {len(lost)} only in REF {lost[:3]}, {len(new)} only now {new[:3]}")


def _compare_tensors(where: str, before: dict[str, Tensor], now: dict[str, Tensor]) -> None:
    _compare_names(f"{where}, tensors", before, now)
    for name, old in before.items():
        new = now[name]
        if (old.dtype, old.shape) != (new.dtype, new.shape):
            sizes = [f"{tensor.dtype} {tuple(tensor.shape)}" for tensor in (old, new)]
            raise Different(f"{where}, {name}: {sizes[0]} in REF, {sizes[1]} now")
        unequal = (_bytes(old) != _bytes(new)).any(dim=1).nonzero().flatten()
        if len(unequal):
            i = int(unequal[0])
            values = f"{old.flatten()[i].item()!r} in REF, {new.flatten()[i].item()!r} now"
            raise Different(f"{where}, {name}: value {i} is {values}; {len(unequal)} of {old.numel()} differ")


def _bytes(tensor: Tensor) -> Tensor:
    """(values, bytes of each)."""
    return tensor.reshape(-1, 1).view(torch.uint8)


def _renamed(key: str) -> str:
    for old, new in RENAMED_METRICS.items():
        if key.endswith(old):
            return key.removesuffix(old) + new
    return key


def _compare_metrics(before: list[dict[str, Any]], now: list[dict[str, Any]]) -> None:
    """Raises Different for another number of updates, another metric, value or order of the keys."""
    if len(before) != len(now):
        raise Different(f"metrics.jsonl: {len(before)} updates in REF, {len(now)} now")
    for line, (old, new) in enumerate(zip(before, now, strict=True)):
        where = f"metrics.jsonl, update {line}"
        _compare_names(f"{where}, metrics", old, new)
        for key in old:
            if repr(old[key]) != repr(new[key]):
                raise Different(f"{where}, {key}: {old[key]} in REF, {new[key]} now")
        if list(old) != list(new):
            raise Different(f"{where}: the metrics are in another order")


if __name__ == "__main__":
    main()
