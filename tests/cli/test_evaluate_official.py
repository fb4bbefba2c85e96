"""`avd generate --suite`, then `avd evaluate --suite`: from two models to their rows, by both benchmarks."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from avd.evaluation.rows import read_results
from avd.evaluation.suites import suite_class
from helpers.command import avd
from helpers.official import Fake, fake
from helpers.tiny import tiny_model

__all__ = ["fake"]

PROMPT = "a red square"


@pytest.fixture(params=["vbench", "vbench2"])
def made(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path]:
    """A benchmark, and a folder with a list of one prompt for all of its dimensions and the videos of two models."""
    suite = str(request.param)
    names = [each.name for each in suite_class(suite).scoring.dimensions]  # type: ignore[attr-defined]
    groups = [names] if suite == "vbench" else [[name] for name in names]
    (tmp_path / "info.json").write_text(json.dumps([{"prompt_en": PROMPT, "dimension": group} for group in groups]))
    tiny_model(0).save(tmp_path / "tiny-teacher")
    tiny_model(1).save(tmp_path / "tiny-student", student_timesteps=(1000, 500))
    for role, sampling in (("teacher", ("--steps", 2)), ("student", ())):
        options = ("--suite", suite, "--suite-info", tmp_path / "info.json", "--output", tmp_path / role)
        assert avd("generate", tmp_path / f"tiny-{role}", *options, *sampling) == 0
    return suite, tmp_path


def judge(fake: Fake, suite: str, place: Path) -> int:
    options = ("--suite", suite, "--suite-info", place / "info.json", "--vbench-python", fake.python)
    return avd("evaluate", place / "student", *options, "--reference", place / "teacher", "--json", place / "rows.json")


def by_hand(suite: str, scores: list[float]) -> float:
    """The total, the formulas written out; scores in the order in which the suite declares its dimensions."""
    if suite == "vbench2":
        shares = ((0, 2), (2, 4), (4, 11), (11, 14), (14, 18))
        return sum(sum(scores[a:b]) / (b - a) for a, b in shares) / 5
    s = scores
    quality = (s[0] - 0.1462) / 0.8538 + (s[1] - 0.2615) / 0.7385 + (s[2] - 0.6293) / 0.3707 + (s[3] - 0.706) / 0.2915
    quality = (quality + 0.5 * s[4] + s[5] + s[6]) / 6.5
    semantic = sum(s[7:12]) + s[12] / 0.8222 + (s[13] - 0.0009) / 0.2846 + s[14] / 0.364 + s[15] / 0.364
    return (4 * quality + semantic / 9) / 5


def test_both_rows_have_the_totals_of_hand_computation(made: tuple[str, Path], fake: Fake) -> None:
    suite, place = made
    names = [each.name for each in suite_class(suite).scoring.dimensions]  # type: ignore[attr-defined]
    scores = [(number + 1) / 40 for number in range(len(names))]
    fake.say(suite, **dict(zip(names, scores, strict=True)))
    assert judge(fake, suite, place) == 0
    rows = read_results(place / "rows.json").rows
    assert [(row.name, row.steps) for row in rows] == [("student", 2), ("teacher", 2)]
    for row in rows:
        assert row.score(suite, "total") == pytest.approx(by_hand(suite, scores))
    assert avd("table", place / "rows.json") == 0


def missing(video: Path) -> None:
    video.unlink()


def stray(video: Path) -> None:
    video.with_suffix(".mp4.txt").write_text("notes")


def truncated(video: Path) -> None:
    data = video.read_bytes()
    video.unlink()
    video.write_bytes(data[: len(data) // 2])


def broken(video: Path) -> None:
    data = bytearray(video.read_bytes())
    start = data.index(b"mdat") + 4
    data[start : start + 200] = bytes(200)
    video.unlink()
    video.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (missing, "lacks 1 of "),
        (stray, ".mp4.txt is no video of VBench"),
        (truncated, "is no MP4 file, or one that is cut short"),
        (broken, "is broken"),
    ],
)
def test_a_damaged_folder_is_refused_in_one_line_before_official_code_runs(
    made: tuple[str, Path], fake: Fake, capfd: pytest.CaptureFixture[str], damage: Callable[[Path], None], message: str
) -> None:
    suite, place = made
    damage(next((place / "student").rglob(f"{PROMPT}-1.mp4")))
    capfd.readouterr()
    assert judge(fake, suite, place) == 2
    (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("avd:")]
    assert message in line
    assert not fake.calls(suite) and not (place / "rows.json").exists()
