"""Dimensions as processes: spread over GPUs, kept, stopped, failed; driven by stand-ins of the official packages."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Any

import pytest

from avd.evaluation.rows import read_results
from helpers.command import avd
from helpers.killing import in_a_fork
from helpers.official import Fake, command, fake, ready, write_videos

__all__ = ["fake", "ready"]


def test_each_dimension_is_a_process_with_its_own_videos(ready: tuple[Fake, Path, Path], tmp_path: Path) -> None:
    fake, info, folder = ready
    assert avd(*command(fake, folder, "vbench", info, tmp_path / "row.json", "--set", "local=true")) == 0
    calls = fake.calls("vbench")
    assert len(calls) == len({call["dimension"] for call in calls}) == 16
    for call in calls:
        prompt = f"a test of {call['dimension']}"
        if call["dimension"] in {"subject_consistency", "dynamic_degree", "motion_smoothness"}:
            prompt = "a dog runs"
        assert sorted(call["files"]) == [f"{prompt}-{i}.mp4" for i in range(5)]
        assert call["arguments"] == {"local": True, "imaging_quality_preprocessing_mode": "longer"}
        assert (call["device"], call["gpu"], call["ranks"]) == ("cpu", None, False)
        assert call["own"] and call["work"] == ["vbench"]  # it names its files from above, and finds nothing of others
    assert sorted(path.name for path in fake.folder.iterdir()) == ["bin", "torch.py", "vbench", "vbench2"]
    assert not list(tmp_path.rglob("piece-of-*")) and not list(tmp_path.rglob("left.png"))


def test_gpus_are_shared_out_and_each_judges_one_dimension_at_a_time(
    ready: tuple[Fake, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake, info, folder = ready
    monkeypatch.setenv("FAKE_GPUS", "2")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    fake.say("vbench", scene={"meet": 2, "score": 0.5}, color={"meet": 2, "score": 0.5})
    assert avd(*command(fake, folder, "vbench", info, tmp_path / "row.json", "--dimensions", "scene,color")) == 0
    calls = fake.calls("vbench")
    assert sorted(call["gpu"] for call in calls) == ["3", "5"]
    assert {call["device"] for call in calls} == {"cuda"}


def test_what_is_judged_is_kept_and_not_judged_again(ready: tuple[Fake, Path, Path], tmp_path: Path) -> None:
    fake, info, folder = ready
    assert avd(*command(fake, folder, "vbench", info, tmp_path / "one.json", "--dimensions", "scene,color")) == 0
    assert avd(*command(fake, folder, "vbench", info, tmp_path / "two.json", "--dimensions", "scene,human_action")) == 0
    assert sorted(call["dimension"] for call in fake.calls("vbench")) == ["color", "human_action", "scene"]


def touch_a_video(fake: Fake, info: Path, folder: Path) -> None:
    video = folder / "a test of scene-0.mp4"
    data = video.read_bytes()
    video.unlink()
    video.write_bytes(data)


def change_the_code(fake: Fake, info: Path, folder: Path) -> None:
    (fake.folder / "vbench" / "more.py").write_text("# another version")


def change_the_manifest(fake: Fake, info: Path, folder: Path) -> None:
    """Videos of another model, of the same sizes and times."""
    before = {path.name: path.stat() for path in folder.iterdir()}
    folder.with_name("student.manifest.json").unlink()
    write_videos(folder, "vbench", info, identity="xyz")
    for name, status in before.items():
        os.utime(folder / name, ns=(status.st_atime_ns, status.st_mtime_ns))
    folder.with_name("student.checked.jsonl").unlink()


@pytest.mark.parametrize("change", [touch_a_video, change_the_code, change_the_manifest])
def test_another_video_code_or_model_is_judged_again(
    ready: tuple[Fake, Path, Path], tmp_path: Path, change: Any
) -> None:
    fake, info, folder = ready
    assert avd(*command(fake, folder, "vbench", info, tmp_path / "one.json", "--dimensions", "scene")) == 0
    change(fake, info, folder)
    assert avd(*command(fake, folder, "vbench", info, tmp_path / "two.json", "--dimensions", "scene")) == 0
    assert [call["dimension"] for call in fake.calls("vbench")] == ["scene", "scene"]


@pytest.mark.parametrize("how", ["SIGKILL", "SIGTERM", "SIGINT"])
def test_a_killed_command_ends_official_code_and_continues_where_it_was(
    ready: tuple[Fake, Path, Path], tmp_path: Path, how: str
) -> None:
    fake, info, folder = ready
    fake.say("vbench", scene={"kill_parent": how})
    json_file = tmp_path / "row.json"
    arguments = command(
        fake, folder, "vbench", info, json_file, "--dimensions", "color,scene,human_action,temporal_style"
    )
    assert in_a_fork(lambda: avd(*arguments)) != 0 and not json_file.exists()
    with (fake.folder / "vbench" / "alive").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)  # once the process that judged has ended too
    assert not (fake.folder / "vbench" / "survived").exists()
    before = [call["dimension"] for call in fake.calls("vbench")]
    assert before[-1] == "scene" and len(before) in range(1, 5)
    fake.say("vbench", scene=0.25)
    assert avd(*arguments) == 0
    judged = [call["dimension"] for call in fake.calls("vbench")]
    assert sorted(judged) == sorted(["color", "scene", "human_action", "temporal_style", "scene"])
    (row,) = read_results(json_file).rows
    assert row.score("vbench", "scene") == 0.25 and row.score("vbench", "color") == 0.5


@pytest.mark.parametrize(
    ("order", "message"),
    [
        (float("nan"), "the official score of scene is nan: it could judge no video"),
        ({}, "the official score of scene is nan"),
        (
            {"raise": "CUDA out of memory"},
            "scene: the official code ended with code 1 (RuntimeError: CUDA out of memory)",
        ),
        (67.5, "the official score of scene is 67.5, which is out of its range"),
        ({"score": -1}, "the official score of scene is -1"),
    ],
)
def test_a_dimension_that_fails_is_one_line_and_the_others_are_kept(
    ready: tuple[Fake, Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str], order: Any, message: str
) -> None:
    fake, info, folder = ready
    fake.say("vbench", scene=order)
    json_file = tmp_path / "row.json"
    arguments = command(fake, folder, "vbench", info, json_file, "--dimensions", "scene,color")
    assert avd(*arguments) == 2
    (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("avd:")]
    assert message in line and "(1 of 2 dimensions are done and kept)" in line
    assert not json_file.exists()
    fake.say("vbench", scene=0.5)
    assert avd(*arguments) == 0
    assert [call["dimension"] for call in fake.calls("vbench")].count("color") == 1
