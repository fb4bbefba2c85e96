"""References are measured clip by clip: a run that is stopped or killed meanwhile continues, and ends with the same."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from avd.distillation.monitoring import references
from avd.distillation.sampler import RunSampler
from avd.engine.ranks import SINGLE_PROCESS
from avd.types import Stopped
from helpers.monitor_ranks import measure_and_count
from helpers.processes import end_of, start_ranks
from helpers.watched_run import watched_recipe

CLIPS, STEPS = 5, 3
RECIPE = (f"monitors.clips={CLIPS}", f"monitors.teacher_steps={STEPS}", "compute.microbatch=1")

pytestmark = pytest.mark.usefixtures("one_thread")


def measured(folder: Path, *overrides: str) -> dict[str, Any]:
    return measure_and_count(folder, watched_recipe(*RECIPE, *overrides), SINGLE_PROCESS)


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, dict[str, Any]]:
    """The references of a run that nobody stops, and what it did."""
    folder = tmp_path_factory.mktemp("straight")
    found = measured(folder)
    assert not (folder / "references.jsonl").exists()
    return (folder / "references.json").read_bytes(), found


def test_asked_to_end_it_ends_before_the_next_call_and_continues_with_the_next_round(
    straight: tuple[bytes, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher, calls = RunSampler.teacher, []

    def stopping(self: Any, noise: Any, prompts: Any, steps: int, heed: Any) -> Any:
        def heed_and_count() -> None:
            heed()
            calls.append(1)
            if len(calls) == 3 * STEPS + 2:  # in the middle of the fourth clip
                signal.raise_signal(signal.SIGTERM)

        return teacher(self, noise, prompts, steps, heed_and_count)

    with monkeypatch.context() as patch:
        patch.setattr(RunSampler, "teacher", stopping)
        with pytest.raises(Stopped, match=r"stopped by SIGTERM while the monitors measured .*: continue with --resume"):
            measured(tmp_path)
    assert len(calls) == 3 * STEPS + 2
    lines = [json.loads(line) for line in (tmp_path / "references.jsonl").read_text().splitlines()]
    assert [line["reference"] for line in lines] == ["teacher"] * 3
    assert len(measured(tmp_path)["teacher"]) == 2 * STEPS
    assert (tmp_path / "references.json").read_bytes() == straight[0]


class Killed(BaseException):
    """Nothing catches it, like a kill -9."""


def test_killed_after_any_clip_it_continues_with_the_next(
    straight: tuple[bytes, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each process is killed as it notes its third clip, and the line is cut short."""
    append = references.append_json_line

    def killed(path: Path, line: Any, **options: Any) -> None:
        left[0] -= 1
        if left[0] == 0:
            with path.open("a") as file:
                file.write('{"reference": "tea')
            raise Killed
        append(path, line, **options)

    monkeypatch.setattr(references, "append_json_line", killed)
    kills = 0
    while not (tmp_path / "references.json").exists():
        left = [3]
        try:
            measured(tmp_path)
        except Killed:
            kills += 1
    assert kills == 4  # of 10 clips, two in each process
    assert (tmp_path / "references.json").read_bytes() == straight[0]


def test_real_clips_are_kept_when_the_teacher_s_steps_change(tmp_path: Path) -> None:
    """And what is damaged is measured again."""
    (tmp_path / "references.json").write_text("{damaged")
    lines = [
        {"reference": "real", "clip": 0, "teacher_steps": None, "saturation": 0.5, "contrast": 0.5, "motion": 0.5},
        {"reference": "teacher", "clip": 0, "teacher_steps": 7, "saturation": 0.5, "contrast": 0.5, "motion": 0.5},
        {"reference": "real", "clip": 99, "teacher_steps": None, "saturation": 9.0, "contrast": 9.0, "motion": 9.0},
        {"reference": "real", "clip": 1, "saturation": 9.0},
        "not a line of ours",
    ]
    (tmp_path / "references.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = measured(tmp_path, "monitors.clips=1")
    assert len(found["teacher"]) == STEPS and found["references"] == {"decoded": 1, "measured": 1}
    assert json.loads((tmp_path / "references.json").read_text())["real"] == dict.fromkeys(
        ("saturation", "contrast", "motion"), 0.5
    )


def test_one_rank_that_is_asked_ends_all_and_they_continue(tmp_path: Path) -> None:
    arguments = ("helpers.monitor_ranks", str(tmp_path), *RECIPE, "monitors.teacher_steps=60")
    processes, lines = start_ranks(2, *arguments), tmp_path / "references.jsonl"
    while not (lines.exists() and lines.read_text()):
        assert all(process.poll() is None for process in processes), "they ended by themselves"
        time.sleep(0.01)
    os.kill(processes[1].pid, signal.SIGTERM)
    for code, errors in end_of(processes):
        assert code == 128 + signal.SIGTERM and "stopped by SIGTERM while the monitors measured" in errors
    noted = [json.loads(line)["reference"] for line in lines.read_text().splitlines()]
    assert noted in (["teacher"] * 2, ["teacher"] * 4)
    for code, errors in end_of(start_ranks(2, *arguments)):
        assert code == 0, errors
    ranks = [json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in range(2)]
    assert [len(rank["teacher"]) for rank in ranks] == [60 * (3 - len(noted) // 2)] * 2
