"""The path from a folder of videos to a row, driven by stand-ins of the official packages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from avd.evaluation.rows import read_results
from helpers.command import avd
from helpers.official import Fake, command, fake, ready, write_info, write_videos

__all__ = ["fake", "ready"]


def test_a_row_of_vbench_has_the_totals_of_hand_computation(
    ready: tuple[Fake, Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    fake, info, folder = ready
    fake.say("vbench", subject_consistency=0.9, scene=0.4, appearance_style=0.2, imaging_quality=0.7)
    assert avd(*command(fake, folder, "vbench", info, tmp_path / "row.json")) == 0
    (row,) = read_results(tmp_path / "row.json").rows
    scores = row.scores["vbench"]
    consistency, background = (0.9 - 0.1462) / 0.8538, (0.5 - 0.2615) / 0.7385
    flickering, smoothness = (0.5 - 0.6293) / 0.3707, (0.5 - 0.706) / 0.2915
    quality = (consistency + background + flickering + smoothness + 0.5 * 0.5 + 0.5 + 0.7) / 6.5
    style, others = (0.2 - 0.0009) / 0.2846, 5 * 0.5 + 0.4 / 0.8222 + 2 * 0.5 / 0.364
    semantic = (style + others) / 9
    assert scores["quality"] == pytest.approx(quality) and scores["semantic"] == pytest.approx(semantic)
    assert scores["total"] == pytest.approx((4 * quality + semantic) / 5)
    assert row.videos == 14 * 5 and row.steps == row.network_calls == 4
    out = capfd.readouterr()
    assert "Total" in out.out and f"{100 * (4 * quality + semantic) / 5:.2f} %" in out.out
    assert "name the teacher's videos with --reference" in out.err


def test_a_row_of_vbench2_has_the_totals_of_hand_computation(fake: Fake, tmp_path: Path) -> None:
    info = write_info(tmp_path / "info.json", "vbench2")
    write_videos(tmp_path / "student", "vbench2", info)
    fake.say("vbench2", **{"Diversity": 0.1, "Multi-View_Consistency": 0.9})
    assert avd(*command(fake, tmp_path / "student", "vbench2", info, tmp_path / "row.json")) == 0
    (row,) = read_results(tmp_path / "row.json").rows
    scores = row.scores["vbench2"]
    assert scores["creativity"] == pytest.approx(0.3) and scores["physics"] == pytest.approx(0.6)
    assert scores["total"] == pytest.approx((0.3 + 0.5 + 0.5 + 0.5 + 0.6) / 5)
    assert scores["multi_view_consistency"] == 0.9
    assert row.videos == 17 * 3 + 20


def test_videos_that_official_code_could_not_judge_are_reported(
    fake: Fake, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    info = write_info(tmp_path / "info.json", "vbench2")
    write_videos(tmp_path / "student", "vbench2", info)
    fake.say("vbench2", Human_Clothes={"score": 0.5, "unjudged": 2})
    more = ("--dimensions", "Human_Clothes")
    assert avd(*command(fake, tmp_path / "student", "vbench2", info, tmp_path / "row.json", *more)) == 0
    assert "human_clothes of student: the official code could judge 1 of 3 videos" in capfd.readouterr().err


def test_a_partial_result_is_called_partial_and_has_no_total(
    ready: tuple[Fake, Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    fake, info, folder = ready
    more = ("--dimensions", "scene", "--dimensions", "temporal_flickering")
    assert avd(*command(fake, folder, "vbench", info, tmp_path / "row.json", *more)) == 0
    (row,) = read_results(tmp_path / "row.json").rows
    assert {key: value for key, value in row.scores["vbench"].items() if value is not None} == {
        "scene": 0.5,
        "temporal_flickering": 0.5,
    }
    note = "student: partial, 14 of 16 dimensions of vbench are missing; there is no total."
    shown = " ".join(capfd.readouterr().out.split())
    assert note in shown and "Total" not in shown
    assert avd("table", tmp_path / "row.json") == 0
    assert note in capfd.readouterr().out


def test_of_25_samples_official_code_judges_those_that_its_filter_finds_still(
    fake: Fake, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    info, folder = write_info(tmp_path / "info.json", "vbench"), tmp_path / "student"
    write_info(fake.folder / "vbench" / "VBench_full_info.json", "vbench")
    write_videos(folder, "vbench", info, flickering_samples=25)
    more = ("--dimensions", "temporal_flickering,scene")
    assert avd(*command(fake, folder, "vbench", info, tmp_path / "row.json", *more)) == 0
    files = {call["dimension"]: sorted(call["files"]) for call in fake.calls("vbench")}
    assert files["temporal_flickering"] == [f"a test of temporal_flickering-{i}.mp4" for i in range(2)]
    assert files["scene"] == [f"a test of scene-{i}.mp4" for i in range(5)]
    (row,) = read_results(tmp_path / "row.json").rows
    assert row.protocol is not None and row.protocol["samples"]["temporal_flickering"] == 25
    assert row.videos == 30
    lines = capfd.readouterr().err
    assert "temporal_flickering of student: the official code could judge 2 of 5 videos" in lines


def test_prompts_that_the_official_filter_does_not_know_are_refused(
    fake: Fake, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """It reads the package's own list, whatever --suite-info says, and goes past all others."""
    info, folder = write_info(tmp_path / "info.json", "vbench"), tmp_path / "student"
    write_info(fake.folder / "vbench" / "VBench_full_info.json", "vbench")
    info.write_text(info.read_text().replace("a test of temporal_flickering", "a test of calm"))
    write_videos(folder, "vbench", info, flickering_samples=25)
    assert avd(*command(fake, folder, "vbench", info, tmp_path / "row.json")) == 2
    assert "lacks 1 prompts of temporal_flickering of" in capfd.readouterr().err and not fake.calls("vbench")
    assert avd(*command(fake, folder, "vbench", info, tmp_path / "row.json", "--dimensions", "scene")) == 0


def test_teacher_and_student_are_judged_by_one_command_into_two_rows(
    ready: tuple[Fake, Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    fake, info, folder = ready
    sampler = {"steps": 50, "guidance": 5.0, "negative_prompt": "blurred"}
    write_videos(tmp_path / "teacher", "vbench", info, sampler=sampler, identity="def")
    more = ("--reference", tmp_path / "teacher", "--dimensions", "scene")
    assert avd(*command(fake, folder, "vbench", info, tmp_path / "rows.json", *more)) == 0
    student, teacher = read_results(tmp_path / "rows.json").rows
    assert (teacher.name, teacher.steps, teacher.network_calls) == ("teacher", 50, 100)
    assert (student.name, student.steps, student.network_calls) == ("student", 4, 4)
    assert teacher.protocol is not None and student.protocol is not None
    assert teacher.protocol["negative_prompt"] == "blurred" and student.protocol["negative_prompt"] is None
    assert teacher.protocol["package"].startswith("vbench ") and teacher.protocol["prompts"] == "original"
    capfd.readouterr()
    assert avd("table", tmp_path / "rows.json") == 0


@pytest.mark.parametrize("made_elsewhere", [False, True])
def test_a_teacher_of_another_protocol_is_refused_before_anything_is_judged(
    ready: tuple[Fake, Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str], made_elsewhere: bool
) -> None:
    fake, info, folder = ready
    write_videos(tmp_path / "teacher", "vbench", info, frames=16)
    if made_elsewhere:
        for name in ("student", "teacher"):
            (tmp_path / f"{name}.manifest.json").unlink()
    more = ("--reference", tmp_path / "teacher", "--dimensions", "scene")
    assert avd(*command(fake, folder, "vbench", info, tmp_path / "rows.json", *more)) == 2
    assert 'protocols differ: frames is 8 for "student" and 16 for "teacher"' in capfd.readouterr().err
    assert not fake.calls("vbench")


def without_python(fake: Fake, folder: Path, info: Path) -> list[object]:
    return ["evaluate", folder, "--suite", "vbench", "--suite-info", info, "--json", folder.with_name("row.json")]


def with_broken_package(fake: Fake, folder: Path, info: Path) -> list[object]:
    (fake.folder / "vbench" / "__init__.py").write_text("import moon_detector")
    return command(fake, folder, "vbench", info, folder.with_name("row.json"))


def with_no_program(fake: Fake, folder: Path, info: Path) -> list[object]:
    return [*without_python(fake, folder, info), "--vbench-python", folder / "none"]


def with_unknown_dimension(fake: Fake, folder: Path, info: Path) -> list[object]:
    return command(fake, folder, "vbench", info, folder.with_name("row.json"), "--dimensions", "moon")


def with_dimension_not_in_the_list(fake: Fake, folder: Path, info: Path) -> list[object]:
    entries = [entry for entry in json.loads(info.read_text()) if entry["dimension"] != ["scene"]]
    (folder.parent / "cut.json").write_text(json.dumps(entries))
    folder.with_name("student.manifest.json").unlink()
    return command(fake, folder, "vbench", folder.parent / "cut.json", folder.with_name("row.json"))


def with_other_prompts(fake: Fake, folder: Path, info: Path) -> list[object]:
    other = folder.with_name("other.json")
    other.write_text(info.read_text().replace("a dog runs", "a cat runs"))
    return command(fake, folder, "vbench", other, folder.with_name("row.json"))


def with_other_suite(fake: Fake, folder: Path, info: Path) -> list[object]:
    return command(
        fake, folder, "vbench2", write_info(folder.with_name("2.json"), "vbench2"), folder.with_name("row.json")
    )


def with_no_folder(fake: Fake, folder: Path, info: Path) -> list[object]:
    return command(fake, folder / "none", "vbench", info, folder.with_name("row.json"))


def with_an_option_of_models(fake: Fake, folder: Path, info: Path) -> list[object]:
    return command(fake, folder, "vbench", info, folder.with_name("row.json"), "--negative-prompt", "blurred")


def with_a_model(fake: Fake, folder: Path, info: Path) -> list[object]:
    (folder / "model_index.json").write_text("{}")
    return command(fake, folder, "vbench", info, folder.with_name("row.json"))


def with_an_option_of_networks(fake: Fake, folder: Path, info: Path) -> list[object]:
    return command(fake, folder, "vbench", info, folder.with_name("row.json"), "--fp8")


def with_an_option_of_clips(fake: Fake, folder: Path, info: Path) -> list[object]:
    return command(fake, folder, "vbench", info, folder.with_name("row.json"), "--csv", folder.with_name("row.csv"))


def with_a_python_for_another_suite(fake: Fake, folder: Path, info: Path) -> list[object]:
    return ["evaluate", folder, "--vbench-python", fake.python, "--json", folder.with_name("row.json")]


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (
            without_python,
            "VBench is judged by its official code, in a Python of its own: make one with `python3.10 -m venv",
        ),
        (with_broken_package, "cannot import vbench (ModuleNotFoundError: No module named 'moon_detector'): make one"),
        (with_no_program, "is no program: make one with `python3.10 -m venv"),
        (with_unknown_dimension, "VBench has no dimension 'moon': choose from subject_consistency, "),
        (with_dimension_not_in_the_list, "cut.json has no prompts of scene: name others with --dimensions"),
        (with_other_prompts, "holds videos for other prompts than those of"),
        (with_other_suite, "holds the videos of suite vbench: name it with --suite"),
        (with_no_folder, "is no folder of videos: make one with `avd generate MODEL --suite vbench`"),
        (with_a_model, "is no folder of videos: make one with `avd generate MODEL --suite vbench`"),
        (with_an_option_of_networks, "--fp8 means nothing to suite vbench: leave it out"),
        (with_an_option_of_models, "--negative-prompt means nothing to suite vbench: leave it out"),
        (with_an_option_of_clips, "--csv means nothing to suite vbench: leave it out"),
        (with_a_python_for_another_suite, "--vbench-python means nothing to suite world: leave it out"),
    ],
)
def test_what_cannot_be_judged_is_refused_in_one_line_before_anything_is_run(
    ready: tuple[Fake, Path, Path], capfd: pytest.CaptureFixture[str], prepare: Any, message: str
) -> None:
    fake, info, folder = ready
    assert avd(*prepare(fake, folder, info)) == 2
    (line,) = [line for line in capfd.readouterr().err.splitlines() if line]
    assert message in line and not fake.calls("vbench")


def test_videos_that_were_made_elsewhere_are_judged_without_a_manifest(
    ready: tuple[Fake, Path, Path], tmp_path: Path
) -> None:
    fake, info, folder = ready
    folder.with_name("student.manifest.json").unlink()
    assert avd(*command(fake, folder, "vbench", info, tmp_path / "row.json", "--dimensions", "scene")) == 0
    (row,) = read_results(tmp_path / "row.json").rows
    assert row.protocol is not None and row.protocol["prompts"] is None and row.steps is None
    assert (row.protocol["frames"], row.protocol["size"], row.protocol["fps"]) == (8, "32x48", 16.0)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "a test of scene-3.mp4").unlink(), "lacks 1 of 5 videos of VBench"),
        (lambda folder: (folder / "notes.txt").write_text("x"), "notes.txt is no video of VBench, and would spoil"),
    ],
)
def test_a_folder_is_checked_before_official_code_sees_it(
    ready: tuple[Fake, Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str], damage: Any, message: str
) -> None:
    fake, info, folder = ready
    damage(folder)
    assert avd(*command(fake, folder, "vbench", info, tmp_path / "row.json", "--dimensions", "scene")) == 2
    assert message in capfd.readouterr().err and not fake.calls("vbench")


def test_torchrun_is_refused(
    ready: tuple[Fake, Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    fake, info, folder = ready
    for key, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(key, value)
    assert avd(*command(fake, folder, "vbench", info, tmp_path / "row.json")) == 2
    assert "suite vbench starts a process per GPU by itself: run it without torchrun" in capfd.readouterr().err
