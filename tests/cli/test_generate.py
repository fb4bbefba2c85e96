"""`avd generate` as it is used for many videos: shared, taken up again, placed, and explained by the files."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.command import avd, snapshot
from helpers.tiny import tiny_interpolator, tiny_model


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place") / "student"
    tiny_model().save(folder, student_timesteps=(1000, 500))
    tiny_interpolator().save(folder / "interpolator")
    return folder


WORDS = ("--prompt", "a red square", "--prompt", "a blue circle", "--count", 2, "--seed", 5, "--skip-existing")


def test_processes_share_the_videos_and_later_ones_skip_them(
    student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    launch = {"WORLD_SIZE": "3", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    with monkeypatch.context() as second:
        for key, value in (launch | {"RANK": "1"}).items():
            second.setenv(key, value)
        assert avd("generate", student, *WORDS, "--output", tmp_path / "clip.webm") == 0
    assert [file.name for file in tmp_path.iterdir()] == ["clip-1.webm"]
    capfd.readouterr()
    assert avd("generate", student, *WORDS, "--output", tmp_path / "clip.webm") == 0
    assert sorted(file.name for file in tmp_path.iterdir()) == [f"clip-{i}.webm" for i in range(4)]
    assert "1 of 4 videos were there already" in capfd.readouterr().err
    before = snapshot(tmp_path)
    assert avd("generate", student, *WORDS, "--steps", 2, "--output", tmp_path / "clip.webm") == 2
    assert "clip-0.webm was made with guidance null, and 4.0 is asked for" in capfd.readouterr().err
    assert snapshot(tmp_path) == before


def lines_of(capfd: pytest.CaptureFixture[str]) -> dict[str, str]:
    """What `avd inspect` has shown, by key."""
    parts = (line.partition(" ") for line in capfd.readouterr().out.splitlines())
    return {key: value.strip() for key, _, value in parts}


def test_a_video_says_what_made_it(student: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for name, options in {"a.gif": ("--offload", "blocks"), "b": ("--tiling", "--offload", "model")}.items():
        output = tmp_path / name
        assert avd("generate", student, "--prompt", "a red square", "--half-rate", *options, "--output", output) == 0
        capfd.readouterr()
        assert avd("inspect", output) == 0
        shown = lines_of(capfd)
        assert shown["prompt"] == "a red square" and shown["seed"] == "0" and shown["model"] == str(student)
        assert shown["timesteps"] == "1000, 500" and shown["half_rate_stages"] == "1"
    assert avd("generate", student, "--prompt", "a box", "--steps", 2, "--output", tmp_path / "c.mp4") == 0
    capfd.readouterr()
    assert avd("inspect", tmp_path / "c.mp4") == 0
    shown = lines_of(capfd)
    assert (shown["steps"], shown["guidance"], shown["solver"]) == ("2", "4.0", "euler")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--fp8", "--int8"), "--fp8 and --int8 are both given"),
        (("--fp8",), "float8 weights need a GPU, and the model is on the cpu"),
        (("--attention", "magic"), "attention is 'magic': leave it out"),
        (("--decoder", "nowhere.safetensors"), "nowhere.safetensors is no tiny decoder of this model"),
        (("--decoder", "x.safetensors", "--tiling"), "--decoder names another: leave one out"),
        (("--compile", "--offload", "blocks"), "compiled blocks cannot wait in the host's memory"),
    ],
)
def test_what_cannot_be_is_one_line(
    options: tuple[str, ...], message: str, student: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert avd("generate", student, "--prompt", "a ball", *options, "--output", tmp_path / "new.mp4") == 2
    shown = capfd.readouterr().err
    assert message in shown and len(shown.splitlines()) == 1 and list(tmp_path.iterdir()) == []
