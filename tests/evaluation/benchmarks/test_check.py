"""The check of a benchmark's folder: what passes, what each damage is called, and what is decoded."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from avd.data import write_video
from avd.data.video.mp4 import video_bytes
from avd.evaluation.benchmarks import check
from avd.evaluation.benchmarks.check import check_folder
from avd.evaluation.benchmarks.known import VBENCH, VBENCH2
from avd.evaluation.benchmarks.layout import Layout, make_layout
from avd.evaluation.benchmarks.manifest import Making, Manifest, manifest_file, plan_videos
from avd.evaluation.benchmarks.prompts import read_prompt_list
from avd.types import UserError
from helpers.footage import shades
from helpers.official import write_planned

MAKING = Making("student", {}, 5, 16, 16, 16.0, 8.0, "weights")
RECORD = "videos.checked.jsonl"


def clip(frames: int = 5, side: int = 16) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (frames, side, side, 3), dtype=np.uint8)


@pytest.fixture
def layout(infos: Path) -> Layout:
    return make_layout(read_prompt_list(VBENCH2, infos))


@pytest.fixture
def folder(layout: Layout, tmp_path: Path) -> Path:
    """The videos of VBench-2.0: all the same frames, those of one generation links of one another. No manifest."""
    folder = tmp_path / "videos"
    Manifest(plan_videos(layout, 0), MAKING).write(folder)
    write_planned(folder, clip())
    manifest_file(folder).unlink()
    return folder


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are decoded."""
    names: list[str] = []
    original = check._decode

    def counted(path: Path) -> object:
        names.append(path.name)
        return original(path)

    monkeypatch.setattr(check, "_decode", counted)
    return names


def test_a_file_is_decoded_once_until_it_changes(layout: Layout, folder: Path, decoded: list[str]) -> None:
    seen: list[tuple[int, int]] = []
    check_folder(layout, folder, lambda done, total: seen.append((done, total)))
    assert len(decoded) == len(layout.generations) == 26  # three of the 29 names are links
    assert seen == [(done, 29) for done in range(1, 30)]
    check_folder(layout, folder)
    assert len(decoded) == 26
    write_video(folder / "Human_Anatomy" / "a blue circle-1.mp4", clip(), 16)
    record = (folder.parent / RECORD).read_bytes()
    (folder.parent / RECORD).write_bytes(record[:-5])  # a crash cut the last line short
    check_folder(layout, folder)
    assert sorted(decoded[26:]) == ["a blue circle-1.mp4", "a blue circle-2.mp4"]
    assert not [path for path in folder.rglob("*") if path.name == RECORD]


def test_an_interrupted_check_decodes_what_is_left(layout: Layout, folder: Path, decoded: list[str]) -> None:
    class Interrupted(Exception):
        pass

    def interrupt(done: int, total: int) -> None:
        if done == 10:
            raise Interrupted

    with pytest.raises(Interrupted):
        check_folder(layout, folder, interrupt)
    first = len(decoded)
    decoded.clear()
    check_folder(layout, folder)
    assert first >= 7 and len(decoded) == 19  # ten names, of which six are of three videos, had passed


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def cut_half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def hole(path: Path) -> None:
    data = bytearray(path.read_bytes())
    start = data.index(b"mdat") + 900  # past the encoder's note on its settings
    data[start : start + 400] = bytes(400)
    path.write_bytes(data)


def other_format(path: Path) -> None:
    path.write_bytes(video_bytes(clip(), 16, container="webm"))


def longer(path: Path) -> None:
    write_video(path, clip(frames=6), 16)


def larger(path: Path) -> None:
    write_video(path, clip(side=32), 16)


def slower(path: Path) -> None:
    write_video(path, clip(), 8)


def gone(path: Path) -> None:
    path.unlink()


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


def stripped(path: Path) -> None:
    """The blank at the end of the prompt is lost."""
    path.rename(path.with_name(path.name.replace(" -", "-")))


def beside(name: str) -> Callable[[Path], None]:
    return lambda path: path.with_name(name).write_bytes(b"")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut, r"-1\.mp4 is no MP4 file, or one that is cut short: remove it, and run"),
        (cut_half, r"-1\.mp4 is no MP4 file, or one that is cut short: remove it, and run"),
        (empty, r"-1\.mp4 is no MP4 file, or one that is cut short: remove it, and run"),
        (hole, r"-1\.mp4 is broken.*: remove it, and run"),
        (other_format, r"-1\.mp4 is no MP4 file"),
        (longer, r"-1\.mp4 has 6 frames of 16 x 16 at 16 fps, and the manifest says 5 frames of 16 x 16 at 16 fps"),
        (larger, r"-1\.mp4 has 5 frames of 32 x 32 at 16 fps, and the manifest says 5 frames of 16 x 16"),
        (slower, r"-1\.mp4 has 5 frames of 16 x 16 at 8 fps, and"),
        (gone, r"videos lacks 1 of 29 videos of VBench-2\.0, such as 'Complex_Plot/A man .*-1\.mp4': run the `avd gen"),
        (a_folder, r"-1\.mp4 is no video of VBench-2\.0, and would spoil every score: remove it"),
        (dangling, r"videos lacks 1 of 29 videos"),
        (stripped, r"corner,-1\.mp4 is no video of VBench-2\.0"),
        (beside(".DS_Store"), r"Complex_Plot/\.DS_Store is no video of VBench-2\.0"),
        (beside("captions.jsonl"), r"Complex_Plot/captions\.jsonl is no video of"),
        (beside("a red square-0.mp4"), r"Complex_Plot/a red square-0\.mp4 is no video of"),
        (beside("x-3.mp4.writing"), r"x-3\.mp4\.writing was left by a command that was stopped: run that again"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_each_damage_is_one_line(damage: Callable[[Path], None], message: str, layout: Layout, folder: Path) -> None:
    Manifest(plan_videos(layout, 0), MAKING).write(folder)
    check_folder(layout, folder)
    damage(folder / layout.files_of("Complex_Plot")[1])
    with pytest.raises(UserError, match=message) as error:
        check_folder(layout, folder)
    assert len(str(error.value).splitlines()) == 1


def test_a_sample_too_many_is_a_stray_file(infos: Path, tmp_path: Path) -> None:
    prompts = read_prompt_list(VBENCH, infos)
    layout, folder = make_layout(prompts, flickering_samples=6), tmp_path / "videos"
    for name in layout.files:
        write_video(folder / name, clip(), 16)
    check_folder(layout, folder)
    with pytest.raises(UserError, match=r"a red square, frozen in time-5\.mp4 is no video of VBench"):
        check_folder(make_layout(prompts), folder)


def swap(one: Path, other: Path) -> None:
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)


@pytest.mark.parametrize("seen_before", [False, True])
def test_a_video_under_the_name_of_another_is_found(seen_before: bool, layout: Layout, folder: Path) -> None:
    one, other = (folder / name for name in layout.files_of("Complex_Plot")[:2])
    swap(one, other)
    if seen_before:
        check_folder(layout, folder)  # without a manifest, nothing says that they are wrong
    manifest = Manifest(plan_videos(layout, 0), MAKING)
    manifest.write(folder)
    with pytest.raises(
        UserError, match=r"-0\.mp4 was made with seed \d+, and the manifest says \d+: remove it, and run"
    ):
        check_folder(layout, folder)
    swap(one, other)
    check_folder(layout, folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"identity": "other weights"}, 'was made with identity "weights", and the manifest says "other weights"'),
        ({"sampler": {"steps": 4}}, "was made with steps null, and the manifest says 4"),
    ],
)
def test_a_video_of_another_making_is_found(
    changes: dict[str, Any], message: str, layout: Layout, folder: Path, decoded: list[str]
) -> None:
    check_folder(layout, folder)
    decoded.clear()
    Manifest(plan_videos(layout, 0), replace(MAKING, **changes)).write(folder)
    with pytest.raises(UserError, match=message):
        check_folder(layout, folder)
    assert decoded == []


def test_a_video_that_does_not_say_how_it_was_made_is_refused(layout: Layout, folder: Path) -> None:
    Manifest(plan_videos(layout, 0), MAKING).write(folder)
    write_video(folder / layout.files[0], clip(), 16)
    with pytest.raises(UserError, match="does not say how it was made, and a manifest says how it was to be"):
        check_folder(layout, folder)


def test_a_record_of_an_earlier_version_is_passed_over(layout: Layout, folder: Path, decoded: list[str]) -> None:
    (folder.parent / RECORD).write_text('{"file": "a", "size": 1, "changed": 1, "decoded": {}}\n')
    check_folder(layout, folder)
    decoded.clear()
    check_folder(layout, folder)
    assert decoded == []


def test_without_a_manifest_all_are_as_the_first(layout: Layout, folder: Path) -> None:
    check_folder(layout, folder)
    longer(folder / layout.files[-1])
    with pytest.raises(UserError, match=r"has 6 frames .*, and 'Diversity/a red square-0\.mp4' has 5 frames"):
        check_folder(layout, folder)
    Manifest(plan_videos(layout, 0), replace(MAKING, frames=6)).write(folder)
    with pytest.raises(UserError, match=r"a red square-0\.mp4 has 5 frames .*, and the manifest says 6 frames"):
        check_folder(layout, folder)


def test_some_dimensions_need_their_videos_alone(layout: Layout, folder: Path, decoded: list[str]) -> None:
    shutil.rmtree(folder / "Diversity")
    check_folder(layout, folder, dimensions=["Complex_Plot", "Multi-View_Consistency"])
    assert len(decoded) == 6
    with pytest.raises(UserError, match=r"lacks 20 of 23 videos"):
        check_folder(layout, folder, dimensions=["Complex_Plot", "Diversity"])
    (folder / "Diversity").mkdir()
    (folder / "Diversity" / "x.txt").write_text("")
    with pytest.raises(UserError, match=r"x\.txt is no video of"):
        check_folder(layout, folder, dimensions=["Complex_Plot"])


def test_frames_are_let_go(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """However long a file is, at most the frame at work and the one before it are held."""
    path, alive, most = tmp_path / "a.mp4", 0, 0
    write_video(path, shades(25), 16)
    original = check.av.open

    class Frame:
        is_corrupt = False

        def __init__(self) -> None:
            nonlocal alive, most
            alive += 1
            most = max(most, alive)

        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    class Container:
        def __init__(self, *arguments: str, **options: str) -> None:
            self._inner = original(*arguments, **options)
            self.streams = self._inner.streams

        def decode(self, stream: object) -> object:
            return (Frame() for _ in self._inner.decode(self.streams.video[0]))

        def __enter__(self) -> Container:
            return self

        def __exit__(self, *error: object) -> None:
            self._inner.close()

    monkeypatch.setattr(check.av, "open", Container)
    assert check._decode(path).frames == 25 and most <= 2 and alive == 0
