"""`make same` finds what differs between two runs, and only that."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

TOOL = Path(__file__).parents[1] / "tools" / "same.py"


@pytest.fixture(scope="module")
def tool() -> dict[str, Any]:
    return runpy.run_path(str(TOOL))


def write_run(folder: Path) -> Path:
    """A run of two updates, one checkpoint and a student."""
    torch.manual_seed(0)
    checkpoint, student = folder / "checkpoints" / "step-0000002", folder / "student" / "transformer"
    checkpoint.mkdir(parents=True)
    student.mkdir(parents=True)
    tensors = {"student.a": torch.randn(3, 2), "steps": torch.tensor(2), "nan": torch.tensor([float("nan"), 0.0])}
    save_file(tensors, checkpoint / "tensors.safetensors")
    save_file({"a": torch.randn(4).bfloat16()}, student / "model.safetensors")
    lines = [{"update": n, "loss": 0.5 + n, "none": None, "seconds": torch.rand(()).item()} for n in range(2)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def checkpoint_of(run: Path) -> Path:
    return run / "checkpoints" / "step-0000002" / "tensors.safetensors"


def split_checkpoint(run: Path) -> None:
    tensors = load_file(checkpoint_of(run))
    save_file({"steps": tensors.pop("steps")}, checkpoint_of(run).with_name("other.safetensors"))
    save_file(tensors, checkpoint_of(run))


def change_wall_time(run: Path) -> None:
    change_metrics(run, lambda line: {**line, "seconds": 7.0})


def change_metrics(run: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    (run / "metrics.jsonl").write_text("".join(json.dumps(change(line)) + "\n" for line in lines))


def change_tensor(path: Path, name: str, value: float) -> None:
    tensors = load_file(path)
    tensors[name].view(-1)[-1] = value
    save_file(tensors, path)


@pytest.mark.parametrize("change", [lambda run: None, split_checkpoint, change_wall_time])
def test_equal_runs_are_the_same(tool: dict[str, Any], tmp_path: Path, change: Callable[[Path], None]) -> None:
    before, now = write_run(tmp_path / "before"), write_run(tmp_path / "now")
    change(now)
    assert tool["compare_runs"](before, now) == "2 updates, 1 checkpoints, 1 student files"


DAMAGE: dict[str, Callable[[Path], object]] = {
    "metrics.jsonl, update 1, loss: 1.5 in REF, 1.5000000000000002 now": lambda run: change_metrics(
        run, lambda line: {**line, "loss": line["loss"] + line["update"] * 2.0**-52}
    ),
    "metrics.jsonl, update 0, metrics: 1 only in REF ['none'], 0 only now []": lambda run: change_metrics(
        run, lambda line: {key: value for key, value in line.items() if key != "none"}
    ),
    "metrics.jsonl, update 0: the metrics are in another order": lambda run: change_metrics(
        run, lambda line: dict(reversed(line.items()))
    ),
    "checkpoints/step-0000002, nan: value 1 is 0.0 in REF, -0.0 now; 1 of 2 differ": lambda run: change_tensor(
        checkpoint_of(run), "nan", -0.0
    ),
    "checkpoints/step-0000002, steps: value 0 is 2 in REF, 3 now; 1 of 1 differ": lambda run: change_tensor(
        checkpoint_of(run), "steps", 3
    ),
    "student/transformer/model.safetensors, a: value 3 is": lambda run: change_tensor(
        run / "student" / "transformer" / "model.safetensors", "a", 9
    ),
    "student: 1 only in REF ['student/transformer/model.safetensors'], 0 only now []": lambda run: (
        run / "student" / "transformer" / "model.safetensors"
    ).unlink(),
}


@pytest.mark.parametrize("message", DAMAGE)
def test_the_first_difference_is_named(tool: dict[str, Any], tmp_path: Path, message: str) -> None:
    before, now = write_run(tmp_path / "before"), write_run(tmp_path / "now")
    DAMAGE[message](now)
    with pytest.raises(tool["Different"]) as difference:
        tool["compare_runs"](before, now)
    assert str(difference.value).startswith(message)


def test_runs_without_checkpoints_are_not_the_same(tool: dict[str, Any], tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name) for name in ("before", "now")]
    for run in runs:
        checkpoint_of(run).unlink()
    with pytest.raises(tool["Different"], match="cannot be compared"):
        tool["compare_runs"](*runs)


def test_a_renamed_metric_is_the_same_and_reported(tool: dict[str, Any], tmp_path: Path) -> None:
    before, now = write_run(tmp_path / "before"), write_run(tmp_path / "now")
    change_metrics(now, lambda line: {key.replace("loss", "cost"): value for key, value in line.items()})
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(tool["RENAMED_METRICS"], "ss", "st")
        with pytest.raises(tool["Different"], match="only in REF"):
            tool["compare_runs"](before, now)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(tool["RENAMED_METRICS"], "loss", "cost")
        assert tool["compare_runs"](before, now).endswith("; of REF's metrics renamed: loss")


def test_a_listed_new_metric_is_left_out_and_reported(tool: dict[str, Any], tmp_path: Path) -> None:
    before, now = write_run(tmp_path / "before"), write_run(tmp_path / "now")
    name = "distribution_matching_guidance_gradient_rms"
    change_metrics(now, lambda line: {"update": line["update"], name: 0.1, **line})
    assert tool["compare_runs"](before, now).endswith(f"; metrics that REF lacks: {name}")
    change_metrics(now, lambda line: {**line, "other": 0.1})
    with pytest.raises(tool["Different"], match=r"1 only now \['other'\]"):
        tool["compare_runs"](before, now)


@pytest.mark.parametrize(("ref", "found"), [("", "REF is missing"), ("no-such-commit", "no-such-commit is no commit")])
def test_what_is_no_commit_is_refused_in_a_line(ref: str, found: str) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, TOOL, ref], capture_output=True, text=True, env=environment)
    assert done.returncode == 2
    assert done.stderr == f"same: {found}: name the one to compare with, as in `make same REF=main`\n"
