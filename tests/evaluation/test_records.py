"""Records on disk: judging resumes clip by clip, in any number of processes."""

from __future__ import annotations

import shutil
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from avd.data import Video
from avd.evaluation.judging import measure_share
from avd.evaluation.records import RecordFolder
from avd.evaluation.suite import Clip, ClipRecord, Measure, Prompt, Scores, Shape, Values, share
from avd.types import UserError


@dataclass(frozen=True)
class BrightSuite:
    """Counts what it measures."""

    scale: float = 1.0

    name: ClassVar[str] = "bright"
    measures: ClassVar[tuple[Measure, ...]] = (share("brightness", "Brightness", "", "Mean of all pixels."),)
    measured: ClassVar[list[str]] = []

    def unavailable(self) -> None:
        return None

    def prompts(self) -> Sequence[Prompt]:
        return [Prompt(str(i)) for i in range(6)]

    def refusal(self, shape: Shape, prompt: Prompt) -> str | None:
        return "it is the fifth" if prompt.text == "refused" else None

    def measure(self, video: Video, prompt: Prompt) -> dict[str, Any]:
        self.measured.append(prompt.text)
        return {"brightness": float(video.frames.mean()) / 255}

    def prompt_values(self, records: Sequence[ClipRecord]) -> Values:
        return {}

    def summarise(self, records: Sequence[ClipRecord]) -> Scores:
        return Scores({"brightness": records[0].values["brightness"]}, len(records))


SUITE = BrightSuite()
CLIPS = [
    Clip(f"{i}.mp4", prompt, lambda i=i: Video(np.full((2, 4, 4, 3), i, dtype=np.uint8), 8.0), identity=f"content {i}")
    for i, prompt in enumerate(SUITE.prompts())
]


def measured_by(suite: BrightSuite, folder: Path, clips: Sequence[Clip] = CLIPS, **share: int) -> list[str]:
    """The prompts of the clips that were measured, not found."""
    BrightSuite.measured.clear()
    measure_share(suite, clips, RecordFolder(folder, suite, share.get("rank", 0)), **share)
    return list(BrightSuite.measured)


def found(folder: Path) -> list[ClipRecord]:
    return RecordFolder(folder, SUITE).wait(CLIPS, lambda done, total: None)


def test_judging_that_was_stopped_measures_only_what_is_left(tmp_path: Path) -> None:
    stopping = [*CLIPS[:4], replace(CLIPS[4], prompt=Prompt("refused")), CLIPS[5]]
    with pytest.raises(UserError, match=r"4\.mp4: it is the fifth"):
        measured_by(SUITE, tmp_path, stopping)
    assert measured_by(SUITE, tmp_path) == ["4", "5"]
    assert measured_by(SUITE, tmp_path) == []
    assert [record.values["brightness"] * 255 for record in found(tmp_path)] == pytest.approx(range(6))


def test_one_clip_at_a_time_is_in_memory_whatever_their_number(tmp_path: Path) -> None:
    made, most = [], 0

    def read() -> Video:
        nonlocal most
        video = Video(np.zeros((2, 4, 4, 3), dtype=np.uint8), 8.0)
        made.append(weakref.ref(video.frames))
        most = max(most, sum(frames() is not None for frames in made))
        return video

    clips = [Clip(f"{i}.mp4", Prompt(str(i)), read, identity=f"content {i}") for i in range(50)]
    measure_share(SUITE, clips, RecordFolder(tmp_path, SUITE))
    assert (len(made), most) == (50, 1)


def test_processes_share_the_clips_and_another_number_of_them_resumes(tmp_path: Path) -> None:
    assert measured_by(SUITE, tmp_path, rank=1, size=3) == ["1", "4"]
    assert measured_by(SUITE, tmp_path, rank=0, size=2) == ["0", "2"]  # and finds the record of 4
    assert measured_by(SUITE, tmp_path) == ["3", "5"]
    assert [record.clip for record in found(tmp_path)] == [clip.name for clip in CLIPS]


@pytest.mark.parametrize("damage", [lambda data: data[:-9], lambda data: data[:-9] + bytes(8) + b"\n"])
def test_a_line_that_a_crash_has_damaged_is_measured_again(tmp_path: Path, damage: Any) -> None:
    measured_by(SUITE, tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_bytes(damage(file.read_bytes()))
    assert measured_by(SUITE, tmp_path) == ["5"]
    assert len(found(tmp_path)) == 6


def test_another_content_prompt_or_option_is_another_record(tmp_path: Path) -> None:
    measured_by(SUITE, tmp_path)
    assert measured_by(SUITE, tmp_path, [replace(CLIPS[0], identity="other"), CLIPS[1]]) == ["0"]
    assert measured_by(SUITE, tmp_path, [replace(CLIPS[0], prompt=Prompt("0", repeat=1)), CLIPS[1]]) == ["0"]
    assert len(measured_by(BrightSuite(scale=2.0), tmp_path)) == 6


def test_a_record_goes_by_the_name_that_its_clip_has_now(tmp_path: Path) -> None:
    measured_by(SUITE, tmp_path)
    moved = [replace(clip, name=f"elsewhere/{clip.name}") for clip in CLIPS]
    records = RecordFolder(tmp_path, SUITE).wait(moved, lambda done, total: None)
    assert [record.clip for record in records] == [clip.name for clip in moved]


def test_records_wait_for_those_of_other_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured_by(SUITE, tmp_path, rank=0, size=2)
    waiting, counts = RecordFolder(tmp_path, SUITE), []
    monkeypatch.setattr("time.sleep", lambda seconds: measured_by(SUITE, tmp_path, rank=1, size=2))
    assert len(waiting.wait(CLIPS, lambda done, total: counts.append(done))) == 6
    assert counts == [3, 6]
    with waiting.held():
        waiting.remove()
    assert not tmp_path.exists()


def test_a_process_that_waits_writes_what_was_lost_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waiting = RecordFolder(tmp_path / "records", SUITE)
    measure_share(SUITE, CLIPS, waiting)
    shutil.rmtree(tmp_path / "records")
    sleeps: list[float] = []
    monkeypatch.setattr("time.sleep", sleeps.append)
    assert len(waiting.wait(CLIPS, lambda done, total: None)) == 6
    other = RecordFolder(tmp_path / "records", SUITE, rank=1)
    assert len(other.wait(CLIPS, lambda done, total: None)) == 6
    assert len(sleeps) == 1


def test_a_second_command_is_kept_out_and_what_is_not_known_stays(tmp_path: Path) -> None:
    folder = tmp_path / "records"
    first, second = RecordFolder(folder, SUITE), RecordFolder(folder, SUITE)
    with first.held():
        with pytest.raises(UserError, match=r"another process is writing into the records .*records: wait") as caught:
            second.held().__enter__()
        assert "\n" not in str(caught.value)
        measure_share(SUITE, CLIPS, first)
        first.wait(CLIPS, lambda done, total: None)
        (folder / "rank-7-0.jsonl").write_text("of somebody else\n")
        first.remove()
    assert [path.name for path in folder.iterdir()] == ["rank-7-0.jsonl"]
    with second.held():
        pass


def test_records_of_other_code_are_not_used(tmp_path: Path) -> None:
    measure_share(SUITE, CLIPS, RecordFolder(tmp_path, SUITE, code="1+a"))
    measured = [RecordFolder(tmp_path, SUITE, code=code).has(CLIPS[0]) for code in ("1+a", "1+b")]
    assert measured == [True, False]
