"""Folders of videos: what their clips are of, and that they are read one by one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from avd.data import CaptionedFile, write_captions, write_video
from avd.data.video.writing import write_clip
from avd.evaluation.folder import align_prompts, list_clips
from avd.evaluation.judging import judge
from avd.evaluation.suite import Clip, Prompt
from avd.evaluation.suites.world import WorldSuite
from avd.types import UserError
from helpers.painter import WORLD

SUITE = WorldSuite(clips=4, repeats=0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    clips = [WORLD.clip(i, "heldout") for i in range(4)]
    for i, clip in enumerate(clips):
        write_video(tmp_path / f"{i}.mp4", clip.video, 8)
    captions = [CaptionedFile(f"{i}.mp4", clip.caption.text) for i, clip in enumerate(clips)]
    write_captions(tmp_path / "captions.jsonl", captions)
    return tmp_path


def test_a_folder_with_captions(folder: Path) -> None:
    clips = list_clips(folder)
    assert [clip.prompt for clip in clips] == list(SUITE.prompts())
    video = clips[2].read()
    assert video.frames.shape == (17, 48, 48, 3) and video.fps == 8
    row = judge(SUITE, clips, name="folder")
    assert (row.score("world", "instance_preservation"), row.videos, row.seconds_per_video) == (1.0, 4, None)


def test_a_file_is_opened_when_its_clip_is_read(folder: Path) -> None:
    clips = list_clips(folder)
    (folder / "1.mp4").unlink()
    clips[0].read()
    with pytest.raises(UserError, match=r"1\.mp4.*no such file"):
        clips[1].read()
    with pytest.raises(UserError, match=r"1\.mp4.*no such file"):  # known before anything is judged
        list_clips(folder)


def test_a_file_that_is_written_again_is_another_clip(folder: Path) -> None:
    before = [clip.identity for clip in list_clips(folder)]
    write_video(folder / "1.mp4", WORLD.clip(5, "heldout").video, 8)
    after = [clip.identity for clip in list_clips(folder)]
    assert [old == new for old, new in zip(before, after, strict=True)] == [True, False, True, True]


def test_a_caption_that_stands_twice_has_two_repeats(folder: Path) -> None:
    write_captions(folder / "captions.jsonl", [CaptionedFile(f"{i}.mp4", "ab"[i % 2]) for i in range(4)])
    assert [clip.prompt for clip in list_clips(folder)] == [Prompt("a"), Prompt("b"), Prompt("a", 1), Prompt("b", 1)]


def prompts_of(folder: Path, names: list[str], about: dict[str, dict[str, object]]) -> dict[str, Prompt]:
    """The prompts of tiny videos of these names, by name; some say of themselves what is in `about`."""
    frames = np.zeros((2, 16, 16, 3), dtype=np.uint8)
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_clip(path, frames, 8, json.dumps({"avd": "1", **about[name]}) if name in about else "")
    return {str(Path(clip.name).relative_to(folder)): clip.prompt for clip in list_clips(folder)}


def test_files_without_captions_are_of_what_their_names_say(tmp_path: Path) -> None:
    names = ["a cat-0.mp4", "a cat-10.mp4", "well-known-2.mp4", "plain.webm", "Human/a cat-1.mp4"]
    assert prompts_of(tmp_path, names, {}) == {
        "a cat-0.mp4": Prompt("a cat"),
        "a cat-10.mp4": Prompt("a cat", 10),
        "well-known-2.mp4": Prompt("well-known", 2),
        "plain.webm": Prompt("plain"),
        "Human/a cat-1.mp4": Prompt("a cat", 1, "Human"),
    }


def test_what_a_file_says_of_itself_comes_before_its_name(tmp_path: Path) -> None:
    long = "a cat " * 40
    about = {
        "out-0.mp4": {"prompt": "a cat", "seed": 9},
        "out-1.mp4": {"prompt": "a dog", "seed": 9},
        "out-2.mp4": {"prompt": "a cat", "seed": 3},
        f"{long[:180]}-4.mp4": {"prompt": long, "seed": 77},
    }
    assert prompts_of(tmp_path, list(about), about) == {
        "out-0.mp4": Prompt("a cat", 9),
        "out-1.mp4": Prompt("a dog", 9),
        "out-2.mp4": Prompt("a cat", 3),
        f"{long[:180]}-4.mp4": Prompt(long, 4),
    }


def test_numbered_footage_is_no_answer_to_one_prompt(tmp_path: Path) -> None:
    names = ["video-000.mp4", "video-001.mp4", "video-00.mp4"]
    assert prompts_of(tmp_path, names, {}) == {name: Prompt(Path(name).stem) for name in names}


def test_hidden_files_are_passed_over(tmp_path: Path) -> None:
    assert prompts_of(tmp_path, ["a-0.mp4", ".cache/b-0.mp4"], {}) == {"a-0.mp4": Prompt("a")}
    (tmp_path / "._a-0.mp4").write_bytes(b"what macOS keeps beside a file")
    assert [clip.prompt for clip in list_clips(tmp_path)] == [Prompt("a")]


def test_two_forms_of_one_letter_are_one_text(tmp_path: Path) -> None:
    assert list(prompts_of(tmp_path, ["cafe\u0301-1.mp4"], {}).values()) == [Prompt("caf\u00e9", 1)]
    write_captions(tmp_path / "captions.jsonl", [CaptionedFile("cafe\u0301-1.mp4", "cafe\u0301")])
    assert [clip.prompt for clip in list_clips(tmp_path)] == [Prompt("caf\u00e9")]


def test_a_name_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    prompts_of(tmp_path, ["a-0.mp4"], {})
    (tmp_path / "a-0.mp4").rename(tmp_path / "a\udcff-0.mp4")
    with pytest.raises(UserError, match=r"the name of .*a\\udcff-0\.mp4 is not UTF-8: rename it"):
        list_clips(tmp_path)


def test_sets_are_compared_by_the_same_prompts() -> None:
    def aligned(*sets: list[Prompt]) -> list[list[Prompt]]:
        clips = [[Clip("", prompt, lambda: pytest.fail("read")) for prompt in each] for each in sets]
        return [[clip.prompt for clip in each] for each in align_prompts(clips)]

    long = "a cat " * 40
    assert (
        aligned([Prompt("a", 1, "x"), Prompt(long[:180])], [Prompt("a", 1), Prompt(long)])
        == [[Prompt("a", 1), Prompt(long)]] * 2
    )
    two = [[Prompt("a", 0, "x"), Prompt("a", 0, "y")], [Prompt("a", 0, "x")]]
    assert aligned(*two) == two
    cut = [[Prompt(long[:180])], [Prompt(long), Prompt(long + "runs")]]
    assert aligned(*cut) == cut


def test_two_files_of_one_prompt_and_repeat_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a-0\.webm and .*a-0\.mp4 are both repeat 0 of one prompt") as caught:
        prompts_of(tmp_path, ["a-0.mp4", "a-0.webm"], {})
    assert "\n" not in str(caught.value)


def test_a_clip_of_another_length_is_refused(folder: Path) -> None:
    write_video(folder / "1.mp4", WORLD.clip(1, "heldout").video[:9], 8)
    with pytest.raises(UserError, match=r"1\.mp4: 9 frames of 48 x 48 at 8 fps") as caught:
        judge(SUITE, list_clips(folder), name="folder")
    assert "\n" not in str(caught.value)
